import torch
from torch import Tensor, nn

from embedl_deploy.backend import discover_backends, reset_backends, use_backend
from embedl_deploy.backends.example import EXAMPLE
from embedl_deploy.graph import graph_text
from embedl_deploy.inductor import INDUCTOR_PATTERNS
from embedl_deploy.patterns import FuseConvNormAddActivation, ReplaceFlattenLinearWithConv1x1
from embedl_deploy.tensorrt import TENSORRT_PATTERNS
from embedl_deploy.testing import randomize
from embedl_deploy.torchao import TORCHAO_PATTERNS
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, channels: int, inner: int, downsample: bool) -> None:
        super().__init__()
        out = inner * 4
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))
            if downsample
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity: Tensor = x if self.downsample is None else self.downsample(x)
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += identity
        z: Tensor = self.relu(y)
        return z


class Residual(nn.Module):
    """ResNet-50 with four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.layer1 = nn.Sequential(Bottleneck(8, 4, True), Bottleneck(16, 4, False))
        self.layer2 = nn.Sequential(Bottleneck(16, 8, True), Bottleneck(32, 8, False))
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.layer2(self.layer1(self.stem(x))))
        z: Tensor = self.fc(torch.flatten(y, 1))
        return z


def model() -> nn.Module:
    return randomize(Residual().eval())


def test_tensorrt_makes_one_module_per_kernel_of_a_residual_network() -> None:
    result = transform(model(), (IMAGE,), backend="tensorrt")

    assert result.report.counts() == {
        "fuse-conv-norm-activation": 8,
        "fuse-conv-norm-add-activation": 4,
        "fuse-conv-norm": 2,
        "replace-flatten-linear-with-conv1x1": 1,
        "fuse-stem-pool": 1,
    }
    torch.testing.assert_close(result.model(IMAGE), model()(IMAGE), rtol=1e-5, atol=1e-5)


def test_inductor_keeps_the_pool_and_the_linear_head() -> None:
    result = transform(model(), (IMAGE,), backend="inductor")

    assert result.report.counts() == {
        "fuse-conv-norm-activation": 9,
        "fuse-conv-norm-add-activation": 4,
        "fuse-conv-norm": 2,
    }


def test_lattice_and_torchao_leave_convolutions_alone() -> None:
    for name in ("lattice", "torchao"):
        assert not transform(model(), (IMAGE,), backend=name).report.counts()


def test_the_selected_backend_rewrites_as_its_patterns_do() -> None:
    with use_backend("tensorrt"):
        by_name = transform(model(), (IMAGE,))

    by_patterns = transform(model(), (IMAGE,), patterns=TENSORRT_PATTERNS)

    assert graph_text(by_name.model) == graph_text(by_patterns.model)


def test_the_faces_list_conversions_then_fusions() -> None:
    assert ReplaceFlattenLinearWithConv1x1 in TENSORRT_PATTERNS
    assert FuseConvNormAddActivation in INDUCTOR_PATTERNS
    assert ReplaceFlattenLinearWithConv1x1 not in INDUCTOR_PATTERNS
    assert FuseConvNormAddActivation not in TORCHAO_PATTERNS


def test_lattice_holds_conversions_only() -> None:
    reset_backends()
    lattice = discover_backends()["lattice"]

    assert lattice.conversion_patterns
    assert (lattice.fusion_patterns, lattice.smooth_patterns, lattice.quantized_patterns) == (
        (),
        (),
        (),
    )
    assert (lattice.engines, lattice.formats) == ((), ())


def test_the_example_backend_works_without_being_installed() -> None:
    result = transform(model(), (IMAGE,), backend=EXAMPLE)

    assert result.report.counts()["fuse-conv-norm-activation"] == 9
