import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedConv, FusedStemPool, fused_conv
from embedl_deploy.modules.kinds import BatchNorm, Convolution

IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Tree(nn.Module):
    """Holds the parts under their names, as a graph does, beside the module that runs them."""

    def __init__(self, fused: FusedConv) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(fused.parts)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fused(x)
        return y


class RoundWeight(nn.Module):
    """A quantizer with a visible step."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ((weight * 8).round() / 8 - weight).detach()


def randomised(*modules: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data.uniform_(0.5, 1.5, generator=generator)


def conv_and_norm() -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv, norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
    randomised(conv, norm)
    return conv.eval(), norm.eval()


PAIRS: list[tuple[Callable[[], Convolution], Callable[[], BatchNorm], tuple[int, ...]]] = [
    (lambda: nn.Conv1d(4, 6, 3, groups=2), lambda: nn.BatchNorm1d(6), (2, 4, 9)),
    (lambda: nn.Conv2d(4, 6, 3, padding="same"), lambda: nn.BatchNorm2d(6), (2, 4, 9, 9)),
    (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), lambda: nn.BatchNorm2d(4), (2, 4, 9, 9)),
    (lambda: nn.Conv3d(4, 6, 3), lambda: nn.BatchNorm3d(6, affine=False), (2, 4, 5, 6, 7)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), lambda: nn.BatchNorm1d(6), (2, 4, 9)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), lambda: nn.BatchNorm2d(6), (2, 4, 9, 9)),
    (lambda: nn.ConvTranspose3d(4, 6, 3, bias=False), lambda: nn.BatchNorm3d(6), (2, 4, 3, 4, 5)),
]


@pytest.mark.parametrize(("make_conv", "make_norm", "shape"), PAIRS)
def test_the_folded_weight_computes_what_the_parts_compute(
    make_conv: Callable[[], Convolution], make_norm: Callable[[], BatchNorm], shape: tuple[int, ...]
) -> None:
    conv, norm = make_conv(), make_norm()
    randomised(conv, norm)
    fused = fused_conv(conv, norm.eval(), nn.SiLU())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    weight, bias = fused.folded_weight_and_bias()

    torch.testing.assert_close(fused.run_folded(x, weight, bias), fused(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused(x), nn.functional.silu(norm(conv(x))), rtol=0, atol=0)


def test_adds_the_residual_before_the_activation() -> None:
    conv, norm = conv_and_norm()
    fused = fused_conv(conv, norm, nn.ReLU(), adds_residual=True)
    residual = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(2)) * 30

    y = fused(IMAGE, residual)

    torch.testing.assert_close(y, torch.relu(norm(conv(IMAGE)) + residual), rtol=0, atol=0)


def test_the_stem_pools_last() -> None:
    conv, norm = conv_and_norm()
    pool = nn.MaxPool2d(3, 2, 1)

    y = FusedStemPool(conv, norm, nn.ReLU(), pool)(IMAGE)

    torch.testing.assert_close(y, pool(torch.relu(norm(conv(IMAGE)))), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("norm", "activation", "adds", "name"),
    [
        (None, None, False, "FusedConv"),
        (None, nn.ReLU(), False, "FusedConvReLU"),
        (nn.BatchNorm2d(6), nn.Hardswish(), False, "FusedConvBNAct"),
        (nn.BatchNorm2d(6), nn.ReLU(), True, "FusedConvBNAddReLU"),
        (None, nn.GELU(), True, "FusedConvAddAct"),
    ],
)
def test_the_class_name_says_what_is_inside(
    norm: BatchNorm | None, activation: nn.Module | None, adds: bool, name: str
) -> None:
    assert type(fused_conv(nn.Conv2d(4, 6, 3), norm, activation, adds)).__name__ == name


def test_the_repr_reads_like_the_convolution() -> None:
    fused = fused_conv(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.SiLU())

    assert repr(fused) == (
        "FusedConvBNAct(4, 6, kernel_size=(3, 3), stride=(1, 1), bias=False, activation=SiLU())"
    )


def test_parts_are_no_children() -> None:
    fused = fused_conv(*conv_and_norm())

    assert not list(fused.children())
    assert not fused.state_dict()
    assert len(fused.parts) == 2


def test_a_deep_copy_shares_its_parts_with_the_copied_tree() -> None:
    tree = Tree(fused_conv(*conv_and_norm()))

    copied = copy.deepcopy(tree)

    assert copied.fused.parts[0] is copied.leaves[0]
    assert copied.fused.parts[0] is not tree.leaves[0]


def test_training_updates_the_norm_through_the_part() -> None:
    conv, norm = conv_and_norm()
    tree = Tree(fused_conv(conv, norm)).train()
    assert norm.running_mean is not None
    before = norm.running_mean.clone()

    tree(IMAGE).sum().backward()

    assert not torch.equal(norm.running_mean, before)
    assert conv.weight.grad is not None


def test_a_quantizer_sees_the_folded_weight() -> None:
    conv, norm = conv_and_norm()
    fused = fused_conv(conv, norm)
    fused.weight_fake_quant = RoundWeight()
    weight, bias = fused.folded_weight_and_bias()

    y = fused(IMAGE)

    rounded = (weight * 8).round() / 8
    torch.testing.assert_close(y, nn.functional.conv2d(IMAGE, rounded, bias, padding=1))


def test_training_with_a_fine_quantizer_normalises_like_training_without() -> None:
    conv, norm = conv_and_norm()
    fused = fused_conv(conv, norm, nn.ReLU()).train()
    norm.train()
    expected = fused(IMAGE)
    fused.weight_fake_quant = nn.Identity()

    y = fused(IMAGE)

    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_training_with_a_zero_norm_scale_stays_finite() -> None:
    conv, norm = conv_and_norm()
    nn.init.zeros_(norm.weight)
    fused = fused_conv(conv, norm)
    norm.train()
    fused.weight_fake_quant = nn.Identity()

    (fused(IMAGE) * torch.linspace(0, 1, 8)).sum().backward()

    assert norm.weight.grad is not None
    assert norm.weight.grad.isfinite().all()
    assert norm.weight.grad.abs().min() > 0


def test_the_weight_axis_of_a_transposed_convolution_is_one() -> None:
    assert fused_conv(nn.ConvTranspose2d(4, 6, 3)).weight_axis == 1
    assert fused_conv(nn.Conv2d(4, 6, 3)).weight_axis == 0


def test_refuses_padding_that_is_not_zeros() -> None:
    with pytest.raises(ValueError, match="padding_mode='circular'"):
        fused_conv(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"))


def test_refuses_to_fold_a_norm_without_statistics() -> None:
    fused = fused_conv(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))

    with pytest.raises(ValueError, match="track_running_stats=False"):
        fused.folded_weight_and_bias()


def test_exports_with_a_quantizer() -> None:
    tree = Tree(fused_conv(*conv_and_norm(), nn.ReLU())).eval()
    tree.fused.weight_fake_quant = RoundWeight()

    exported = torch.export.export(tree, (IMAGE,), strict=False)

    torch.testing.assert_close(exported.module()(IMAGE), tree(IMAGE))
