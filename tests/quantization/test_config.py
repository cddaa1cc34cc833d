import dataclasses

import pytest
import torch

from embedl_deploy.quantization import (
    CalibrationMethod,
    Placement,
    Precision,
    QuantConfig,
    SmoothQuantConfig,
    TensorQuantConfig,
    WeightFakeQuantize,
)


@pytest.mark.parametrize(
    ("precision", "low", "high"),
    [
        (Precision.INT4, -8, 7),
        (Precision.INT8, -128, 127),
        (Precision.INT16, -32768, 32767),
        (Precision.FP8_E4M3, -448.0, 448.0),
        (Precision.FP8_E5M2, -57344.0, 57344.0),
    ],
)
def test_a_precision_knows_its_range(precision: Precision, low: float, high: float) -> None:
    config = TensorQuantConfig(precision)

    assert (config.quant_min, config.quant_max) == (low, high)


def test_float8_ranges_are_those_of_torch() -> None:
    for precision in (Precision.FP8_E4M3, Precision.FP8_E5M2):
        info = torch.finfo(precision.format.dtype)

        assert (precision.format.lowest, precision.format.highest) == (info.min, info.max)


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TensorQuantConfig().symmetric = False  # pyright: ignore[reportAttributeAccessIssue]


def test_defaults_are_per_channel_weights_and_per_tensor_activations() -> None:
    config = QuantConfig()

    assert config.weight is not None
    assert config.activation is not None
    assert config.weight.per_channel
    assert config.weight.symmetric
    assert not config.activation.per_channel
    assert config == QuantConfig()


def test_refuses_per_channel_activations() -> None:
    with pytest.raises(ValueError, match="one scale per tensor"):
        QuantConfig(activation=TensorQuantConfig(per_channel=True))


def test_refuses_asymmetric_weights() -> None:
    with pytest.raises(ValueError, match="weights must be symmetric"):
        QuantConfig(weight=TensorQuantConfig(symmetric=False))


@pytest.mark.parametrize("method", [CalibrationMethod.PERCENTILE, CalibrationMethod.ENTROPY])
def test_refuses_ranges_of_weights_that_are_not_searched(method: CalibrationMethod) -> None:
    with pytest.raises(ValueError, match=f"got {method.name}, which is for activations: use MIN"):
        QuantConfig(weight=TensorQuantConfig(calibration_method=method))


@pytest.mark.parametrize("method", [CalibrationMethod.MSE, CalibrationMethod.HISTOGRAM])
def test_searched_ranges_of_weights_clip(method: CalibrationMethod) -> None:
    config = QuantConfig(weight=TensorQuantConfig(Precision.INT4, calibration_method=method))
    assert config.weight is not None
    weight = torch.randn(4096, generator=torch.Generator().manual_seed(0))

    scale = WeightFakeQuantize(config.weight, weight.shape).scale_of(weight)

    assert float(scale) < 0.8 * float(weight.abs().max()) / 7


def test_refuses_to_quantize_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to quantize"):
        QuantConfig(activation=None, weight=None)


def test_refuses_a_zero_point_in_float8() -> None:
    with pytest.raises(ValueError, match="no zero point"):
        TensorQuantConfig(Precision.FP8_E4M3, symmetric=False)


def test_refuses_histograms_per_channel() -> None:
    with pytest.raises(ValueError, match="one histogram per tensor"):
        TensorQuantConfig(per_channel=True, calibration_method=CalibrationMethod.ENTROPY)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 101.0])
def test_refuses_a_percentile_outside_its_range(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile must lie in"):
        TensorQuantConfig(percentile=percentile)


def test_refuses_a_smoothing_strength_above_one() -> None:
    with pytest.raises(ValueError, match="strength must lie in"):
        SmoothQuantConfig(strength=1.5)


def test_refuses_symmetric_activations_in_unsigned_storage() -> None:
    with pytest.raises(ValueError, match="signed dtype"):
        Placement(torch.uint8, symmetric_activations=True)
