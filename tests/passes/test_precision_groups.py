import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.passes.precision_groups import config_without, groups_of
from embedl_deploy.quantize import ModulesToSkip, QuantConfig, insert_qdq
from embedl_deploy.rewriting import PassRecord, SiteRecord
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A residual block, one convolution called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.twice = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.block(x) + x)
        return self.head(self.twice(self.twice(x)).mean((2, 3)))


class Attention(nn.Module):
    """Attention by hand, its products beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / 4.0
        return self.out(scores.softmax(-1) @ self.value(x))


class Wrapped(nn.Module):
    """Attention inside another module, and a layer whose name has brackets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention()
        self.layers = nn.ModuleDict({"a[0]": nn.Linear(16, 16), "a0": nn.Linear(16, 16)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.layers["a0"](torch.relu(self.layers["a[0]"](x)))


CASES = [
    (model, example, backend)
    for model, example in ((Residual(), IMAGE), (Wrapped(), torch.randn(2, 5, 16)))
    for backend in (INDUCTOR, TENSORRT)
]


@pytest.mark.parametrize(("model", "example", "backend"), CASES)
def test_each_rule_leaves_its_group_in_float_and_no_other(
    model: nn.Module, example: Tensor, backend: Backend
) -> None:
    fused = transform(model.eval(), (example,), backend=backend).model
    grouping = groups_of(insert_qdq(fused))

    for group in grouping.groups:
        config = config_without(QuantConfig(), [group])
        left = groups_of(insert_qdq(fused, config=config))
        others = [other.name for other in grouping.groups if other is not group]
        assert [other.name for other in left.groups] == others
        assert left.fixed == grouping.fixed
    assert len(grouping.groups) >= 4


class Scaled(nn.Module):
    """A layer, and an operation of the same module that no rule can name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.layer(x))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Scaled(), "no module of the model made it, so that no rule names it"),
        (nn.Sequential(Scaled()), "a rule for '0' would mean '0.layer' too"),
    ],
)
def test_what_no_rule_means_alone_stays_quantized_and_says_why(
    model: nn.Module, reason: str
) -> None:
    fused = transform(model.eval(), (torch.ones(2, 16),), backend=INDUCTOR).model
    quantized = insert_qdq(fused)
    sine = next(n for n in quantized.graph.nodes if n.op == "call_function")
    report = report_of(quantized)
    before = report.passes[-1]
    also = SiteRecord("quantization", "any", sine.name, (sine.name,), "", None)
    report.passes = (PassRecord("quantization", (*before.applied, also)),)

    grouping = groups_of(quantized)

    assert grouping.fixed == {sine.name: reason}
    assert [group.name.rpartition(".")[2] for group in grouping.groups] == ["layer"]


def test_calls_of_one_module_are_one_group() -> None:
    fused = transform(Residual().eval(), (IMAGE,), backend=INDUCTOR).model

    groups = {group.name: group for group in groups_of(insert_qdq(fused)).groups}

    assert list(groups) == ["stem", "block.0", "twice", "head"]
    assert len(groups["twice"].nodes) == 2
    assert groups["twice"].macs == 2 * 2 * 64 * 8 * 8
    assert groups["head"].saved_bytes == 3 * 80 - 10 * 4


def test_equal_layers_on_equal_shapes_have_one_signature() -> None:
    example = torch.randn(2, 5, 16)
    fused = transform(Wrapped().eval(), (example,), backend=INDUCTOR).model

    groups = {group.name: group for group in groups_of(insert_qdq(fused)).groups}

    assert groups["inner.query"].signature == groups["inner.key"].signature
    assert groups["layers.a[0]"].signature != groups["layers.a0"].signature


def test_what_the_user_skips_stays_skipped() -> None:
    fused = transform(Residual().eval(), (IMAGE,), backend=INDUCTOR).model
    skip = ModulesToSkip(stub={"stem"}, weight={nn.Linear}, smooth={"twice"})
    groups = groups_of(insert_qdq(fused)).groups

    config = config_without(QuantConfig(skip=skip), groups[1:2])

    assert config.skip.stub == {"stem", "block.0"}
    assert config.skip.weight == {nn.Linear, "block.0"}
    assert config.skip.smooth == {"twice"}
