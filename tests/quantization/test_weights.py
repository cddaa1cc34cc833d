import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from embedl_deploy.errors import QuantizationError
from embedl_deploy.quantization import (
    CalibrationMethod,
    Precision,
    TensorQuantConfig,
    WeightFakeQuantize,
)
from embedl_deploy.quantization.quantize_dequantize import decomposed

WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    [0.01, 0.1, 1.0, 2.0, 10.0, 0.0]
).reshape(6, 1, 1, 1)
PER_CHANNEL = TensorQuantConfig(per_channel=True)


def test_each_channel_has_the_scale_of_its_own_peak() -> None:
    quantizer = WeightFakeQuantize(PER_CHANNEL, WEIGHT.shape)

    scale = quantizer.scale_of(WEIGHT)

    torch.testing.assert_close(scale[:5], WEIGHT.abs().amax((1, 2, 3))[:5] / 127)
    assert float(scale[5]) == 1.0


def test_rounds_as_torch_does_per_channel() -> None:
    quantizer = WeightFakeQuantize(PER_CHANNEL, WEIGHT.shape)
    quantizer.freeze(WEIGHT)

    codes, scale = quantizer.codes_of(WEIGHT)

    zero_points = torch.zeros(6, dtype=torch.int64)
    ops, layout = decomposed(), (0, -128, 127, torch.int8)
    theirs = ops.quantize_per_channel.default(WEIGHT, scale, zero_points, *layout)
    back = ops.dequantize_per_channel.default(theirs, scale, zero_points, *layout)
    assert torch.equal(codes, theirs)
    torch.testing.assert_close(quantizer(WEIGHT), back)


def test_channels_are_along_the_axis_it_is_told() -> None:
    transposed = WEIGHT[:, :, 0, 0].t().contiguous()
    quantizer = WeightFakeQuantize(PER_CHANNEL, transposed.shape, axis=1)

    rounded = quantizer(transposed)

    straight = WeightFakeQuantize(PER_CHANNEL, WEIGHT[:, :, 0, 0].shape)
    assert torch.equal(rounded.t(), straight(WEIGHT[:, :, 0, 0]))


def test_one_scale_for_the_whole_tensor() -> None:
    quantizer = WeightFakeQuantize(TensorQuantConfig(), WEIGHT.shape)

    assert quantizer.scale_of(WEIGHT).shape == ()
    assert float(quantizer.scale_of(WEIGHT)) == pytest.approx(float(WEIGHT.abs().max()) / 127)


def test_follows_the_weight_until_it_is_frozen() -> None:
    quantizer = WeightFakeQuantize(PER_CHANNEL, WEIGHT.shape)
    larger = WEIGHT * 3.0

    torch.testing.assert_close(quantizer(larger), quantizer(WEIGHT) * 3.0)
    quantizer.freeze(WEIGHT)

    assert quantizer(larger).abs().max() < 1.01 * WEIGHT.abs().max()
    assert "frozen" in repr(quantizer)


def test_the_gradient_reaches_the_weight() -> None:
    weight = nn.Parameter(WEIGHT.clone())

    WeightFakeQuantize(PER_CHANNEL, WEIGHT.shape)(weight).sum().backward()

    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_rounds_with_the_error_of_its_bits(precision: Precision) -> None:
    config = TensorQuantConfig(precision, per_channel=True)
    weight = WEIGHT[:5]

    rounded = WeightFakeQuantize(config, weight.shape)(weight)

    allowed = {"int4": 0.15, "int8": 0.01, "int16": 1e-4, "fp8_e4m3": 0.04, "fp8_e5m2": 0.08}
    relative = float(((rounded - weight).square().sum() / weight.square().sum()).sqrt())
    assert 0 < relative < allowed[precision.value]


@pytest.mark.parametrize(
    ("precision", "columns", "most"), [(Precision.INT4, 64, 0.85), (Precision.INT8, 9, 0.9)]
)
def test_searching_the_range_lowers_the_squared_error(
    precision: Precision, columns: int, most: float
) -> None:
    torch.manual_seed(0)
    weight = torch.distributions.Laplace(0.0, 1.0).sample(torch.Size([8, columns]))
    errors = [
        functional.mse_loss(
            WeightFakeQuantize(
                TensorQuantConfig(precision, per_channel=True, calibration_method=method),
                weight.shape,
            )(weight),
            weight,
        )
        for method in (CalibrationMethod.MSE, CalibrationMethod.MINMAX)
    ]

    assert errors[0] < most * errors[1]


def test_refuses_to_freeze_a_weight_that_is_not_finite() -> None:
    quantizer = WeightFakeQuantize(PER_CHANNEL, WEIGHT.shape, site="%conv")

    with pytest.raises(QuantizationError, match="%conv: the weight has NaN"):
        quantizer.freeze(torch.full_like(WEIGHT, torch.nan))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_exports_and_copies(is_frozen: bool) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(WEIGHT.clone())
            self.quantizer = WeightFakeQuantize(PER_CHANNEL, WEIGHT.shape)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.conv2d(x, self.quantizer(self.weight))

    layer, image = Layer(), torch.randn(1, 4, 5, 5)
    if is_frozen:
        layer.quantizer.freeze(WEIGHT)

    program = torch.export.export(copy.deepcopy(layer), (image,), strict=False)

    torch.testing.assert_close(program.module()(image), layer(image))
