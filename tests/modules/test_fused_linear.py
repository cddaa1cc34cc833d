import pytest
import torch
from torch import nn

from embedl_deploy.modules import (
    FusedNormLinear,
    LinearAsConv1x1,
    TransposedLinear,
    fused_linear,
)
from embedl_deploy.modules.kinds import LinearLayer, RowNorm

ROWS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("linear", [nn.Linear(4, 6), nn.Linear(4, 6, bias=False)])
@pytest.mark.parametrize("activation", [None, nn.GELU("tanh")])
def test_the_given_weight_runs_like_the_parts(
    linear: LinearLayer, activation: nn.Module | None
) -> None:
    fused = fused_linear(linear, activation)
    weight, bias = fused.folded_weight_and_bias()

    y = fused.run_folded(ROWS, weight, bias)

    torch.testing.assert_close(y, fused(ROWS))
    torch.testing.assert_close(y, (activation or nn.Identity())(linear(ROWS)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_linear_counts_outputs_along_axis_one(bias: bool) -> None:
    linear = TransposedLinear(4, 6, bias=bias)
    fused = fused_linear(linear, nn.ReLU())

    weight, offset = fused.folded_weight_and_bias()

    assert weight.shape[fused.weight_axis] == 6
    torch.testing.assert_close(fused.run_folded(ROWS, weight, offset), linear(ROWS).relu())


def test_the_class_name_says_what_is_inside() -> None:
    linear = nn.Linear(4, 6)

    assert repr(fused_linear(linear)) == "FusedLinear(in_features=4, out_features=6, bias=True)"
    assert repr(fused_linear(linear, nn.ReLU())).startswith("FusedLinearReLU(in_features=4")
    assert repr(fused_linear(linear, nn.SiLU())).endswith("bias=True, activation=SiLU())")


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4)])
def test_the_norm_runs_first(norm: RowNorm) -> None:
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    linear = nn.Linear(4, 6)

    fused = FusedNormLinear(norm, linear, nn.GELU())

    torch.testing.assert_close(fused(ROWS), nn.functional.gelu(linear(norm(ROWS))))
    assert fused.parts[:2] == (norm, linear)


def test_the_inner_stub_sees_the_normalised_rows() -> None:
    norm, linear = nn.LayerNorm(4), nn.Linear(4, 6)
    fused = FusedNormLinear(norm, linear)
    fused.linear_input_stub = nn.Hardtanh(-0.5, 0.5)

    y = fused(ROWS)

    torch.testing.assert_close(y, linear(norm(ROWS).clamp(-0.5, 0.5)))


def test_a_linear_runs_as_a_1x1_convolution_on_its_own_parameter() -> None:
    linear = nn.Linear(4, 6)
    image = ROWS[:, 0, :, None, None]
    head = LinearAsConv1x1(linear)

    y = head(image)
    weight, _ = head.folded_weight_and_bias()

    torch.testing.assert_close(y.flatten(1), linear(ROWS[:, 0]))
    assert weight.data_ptr() == linear.weight.data_ptr()
    assert repr(head) == "LinearAsConv1x1(4, 6, bias=True)"


def test_training_the_convolution_trains_the_linear() -> None:
    linear = nn.Linear(4, 6)

    LinearAsConv1x1(linear)(ROWS[:, 0, :, None, None]).sum().backward()

    assert linear.weight.grad is not None
    assert linear.weight.grad.abs().sum() > 0
