"""One scale for each group of neighbouring weights."""

import pytest
import torch
from torch import Tensor

from embedl_deploy.quantization import (
    CalibrationMethod,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    WeightFakeQuantize,
)
from embedl_deploy.quantization.groups import in_groups, out_of_groups, scale_of_each
from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantization.rounded_weight import RoundedWeight
from embedl_deploy.quantization.trainable import TrainableWeight
from embedl_deploy.quantization.weight_rounding import compensated_codes, output_error

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(6, 32, generator=GENERATOR) * torch.logspace(-2, 1, 32)
INT4 = TensorQuantConfig(Precision.INT4, group_size=8)
LAYOUTS = [(WEIGHT, 0), (WEIGHT.t().contiguous(), 1), (WEIGHT.reshape(6, 8, 2, 2), 0)]
ANY_LAYOUT = pytest.mark.parametrize(("weight", "axis"), LAYOUTS, ids=["rows", "columns", "conv"])


def with_scales(scale: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """Returns the codes of ``WEIGHT`` and what they stand for, by torch's own operations."""
    ops, kind = decomposed(), precision.format
    ends = (int(kind.lowest), int(kind.highest), kind.dtype, 8)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    codes = torch.ops.quantized_decomposed.quantize_per_channel_group(WEIGHT, scale, zeros, *ends)
    restored = ops.dequantize_per_channel_group.default(codes, scale, zeros, *ends, torch.float32)
    return codes, restored


@ANY_LAYOUT
@pytest.mark.parametrize("precision", [Precision.INT4, Precision.INT8, Precision.INT16])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_rounds_as_torch_does_in_groups(
    weight: Tensor, axis: int, precision: Precision, is_frozen: bool
) -> None:
    quantizer = WeightFakeQuantize(TensorQuantConfig(precision, group_size=8), weight.shape, axis)
    if is_frozen:
        quantizer.freeze(weight)

    codes, scale = quantizer.codes_of(weight)

    expected = WEIGHT.reshape(6, 4, 8).abs().amax(2) / precision.format.highest
    torch.testing.assert_close(scale, expected)
    their_codes, restored = with_scales(scale, precision)
    assert torch.equal(in_groups(codes, axis, 8), their_codes.reshape(-1, 8))
    assert codes.shape == weight.shape
    rows = in_groups(quantizer(weight), axis, 8).reshape(6, 32)
    torch.testing.assert_close(rows, restored, rtol=0, atol=1e-7)


@ANY_LAYOUT
def test_laying_out_is_undone(weight: Tensor, axis: int) -> None:
    groups = in_groups(weight, axis, 8)

    assert torch.equal(out_of_groups(groups, axis, weight.shape), weight)
    each = scale_of_each(groups.abs().amax(1).reshape(6, 4), axis, weight.shape, 8)
    assert bool((weight.abs() <= each).all())
    assert int((weight.abs() == each).sum()) == 6 * 4


def test_groups_leave_less_error_than_one_scale_per_channel() -> None:
    errors = [
        (WeightFakeQuantize(config, WEIGHT.shape)(WEIGHT) - WEIGHT).square().sum(0)
        for config in (INT4, TensorQuantConfig(Precision.INT4, per_channel=True))
    ]

    assert float(errors[0].sum()) < 0.8 * float(errors[1].sum())
    assert float(errors[0][:8].sum()) < 0.01 * float(errors[1][:8].sum()), "their peaks are small"


def test_a_searched_range_is_one_of_each_group() -> None:
    weight = torch.distributions.Laplace(0.0, 1.0).sample(torch.Size([8, 64]))
    searched = TensorQuantConfig(
        Precision.INT4, group_size=32, calibration_method=CalibrationMethod.MSE
    )
    plain = TensorQuantConfig(Precision.INT4, group_size=32)
    quantizers = [WeightFakeQuantize(config, weight.shape) for config in (searched, plain)]

    errors = [(quantizer(weight) - weight).square().sum() for quantizer in quantizers]

    assert quantizers[0].scale_of(weight).shape == (8, 2)
    assert errors[0] < 0.95 * errors[1]


def test_the_gradient_reaches_the_weight() -> None:
    weight = WEIGHT.clone().requires_grad_()

    WeightFakeQuantize(INT4, weight.shape)(weight).sum().backward()

    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_a_state_carries_the_scale_of_each_group() -> None:
    first, second = (WeightFakeQuantize(INT4, WEIGHT.shape) for _ in range(2))
    first.freeze(WEIGHT)

    second.load_state_dict(first.state_dict())
    second.frozen = True

    assert first.scale.shape == (6, 4)
    assert torch.equal(second(2 * WEIGHT), first(2 * WEIGHT))


@ANY_LAYOUT
def test_codes_chosen_together_keep_the_scales_of_their_groups(weight: Tensor, axis: int) -> None:
    nearest = WeightFakeQuantize(INT4, weight.shape, axis)
    nearest.freeze(weight)
    inputs = torch.randn(32, 200, generator=GENERATOR)
    gram = (torch.randn(32, 32, generator=GENERATOR) @ inputs).cov()[None]
    scale = scale_of_each(nearest.scale, 0, WEIGHT.shape, 8)[None]

    codes = compensated_codes(WEIGHT[None], scale, nearest.grid, gram)
    shaped = out_of_groups(codes.reshape(-1, 8), axis, weight.shape)
    rounded = RoundedWeight(nearest, weight, shaped)

    known = in_groups(nearest.codes_of(weight)[0], axis, 8).reshape(1, 6, 32)
    errors = [output_error(WEIGHT[None], scale, each, gram) for each in (codes, known)]
    assert bool((errors[0] <= errors[1]).all())
    assert float(errors[0].sum()) < 0.85 * float(errors[1].sum())
    assert torch.equal(rounded.codes_of(weight)[0], shaped.to(torch.int8))
    expected = shaped * scale_of_each(nearest.scale, axis, weight.shape, 8)
    torch.testing.assert_close(rounded(weight), expected)
    assert rounded.plain().scale_of(weight).shape == (6, 4)


@ANY_LAYOUT
def test_a_learned_step_belongs_to_each_group(weight: Tensor, axis: int) -> None:
    calibrated = WeightFakeQuantize(INT4, weight.shape, axis)
    trainable = TrainableWeight(calibrated, weight)
    torch.testing.assert_close(trainable(weight), calibrated(weight), rtol=0, atol=1e-6)

    with torch.no_grad():
        trainable.step.log_growth[1] = 0.5  # the second group of the first output
    grown = in_groups(trainable(weight), axis, 8)
    before = in_groups(calibrated(weight), axis, 8)
    differs = (grown != before).any(1)
    assert differs[1]
    assert int(differs.sum()) == 1
    trainable.take_step()
    plain = trainable.trained()

    torch.testing.assert_close(in_groups(plain(weight), axis, 8), grown)
    assert plain.frozen
    assert plain.scale.shape == (6, 4)


@pytest.mark.parametrize("size", [0, 1, -32, True, 32.0])
def test_refuses_a_size_that_is_none(size: int) -> None:
    with pytest.raises(ValueError, match="group_size must be a whole number of at least 2, got"):
        TensorQuantConfig(group_size=size)


def test_refuses_groups_of_what_has_no_even_codes() -> None:
    with pytest.raises(ValueError, match="without a zero point, got INT8 with symmetric=False"):
        TensorQuantConfig(symmetric=False, group_size=32)
    with pytest.raises(ValueError, match="got FP8_E4M3 with symmetric=True"):
        TensorQuantConfig(Precision.FP8_E4M3, group_size=32)


def test_refuses_groups_of_activations() -> None:
    with pytest.raises(ValueError, match="groups are of weights, got group_size=32"):
        QuantConfig(activation=TensorQuantConfig(group_size=32))


def test_a_group_has_scales_of_its_own_and_says_so() -> None:
    assert INT4.per_channel
    assert TensorQuantConfig(Precision.INT4, per_channel=True, group_size=8) == INT4
    assert str(INT4) == "int4 symmetric in groups of 8 minmax"
    assert "6 channels" in repr(WeightFakeQuantize(INT4, WEIGHT.shape))
