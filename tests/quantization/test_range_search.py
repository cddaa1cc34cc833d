from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from embedl_deploy.quantization import CalibrationMethod, Precision, QuantGrid, TensorQuantConfig
from embedl_deploy.quantization.histogram import Histogram
from embedl_deploy.quantization.observers import HistogramObserver
from embedl_deploy.quantization.range_search import (
    entropy_range,
    percentile_range,
    rounding_error_range,
    uniform_error_range,
)
from embedl_deploy.quantization.scales import scale_and_zero_point

Search = Callable[[Histogram, QuantGrid], tuple[float, float]]


def values_of(kind: str) -> Tensor:
    torch.manual_seed(0)
    return {
        "normal": torch.randn(20000),
        "relu": torch.randn(20000).relu(),
        "shifted": torch.randn(20000) + 3.0,
        "heavy": torch.distributions.StudentT(3.0).sample(torch.Size([20000])),
        "outlier": torch.cat([torch.randn(20000), torch.tensor([200.0])]),
    }[kind]


def histogram_of(values: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.add(values, float(values.min()), float(values.max()))
    return histogram


def grid_of(symmetric: bool, precision: Precision = Precision.INT8) -> QuantGrid:
    return QuantGrid.of(TensorQuantConfig(precision, symmetric=symmetric))


def squared_error(values: Tensor, low: float, high: float, grid: QuantGrid) -> float:
    scale, zero_point = scale_and_zero_point(torch.tensor(low), torch.tensor(high), grid)
    rounded = torch.fake_quantize_per_tensor_affine(
        values, float(scale), int(zero_point), int(grid.quant_min), int(grid.quant_max)
    )
    return float((rounded - values).square().mean())


@pytest.mark.parametrize("search", [uniform_error_range, rounding_error_range])
@pytest.mark.parametrize("kind", ["normal", "relu", "shifted", "heavy", "outlier"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_finds_nearly_the_least_error_of_a_brute_force_search(
    search: Search, kind: str, symmetric: bool
) -> None:
    values, grid = values_of(kind), grid_of(symmetric)
    low, high = float(values.min()), float(values.max())
    shrinkages = [0.02 * step for step in range(2, 51)]
    least = min(squared_error(values, low * share, high * share, grid) for share in shrinkages)

    found = search(histogram_of(values), grid)

    assert squared_error(values, *found, grid) <= 1.1 * least


@pytest.mark.parametrize("search", [uniform_error_range, rounding_error_range, entropy_range])
def test_the_range_stays_inside_what_was_seen(search: Search) -> None:
    for kind in ("normal", "relu", "heavy"):
        values = values_of(kind)

        low, high = search(histogram_of(values), grid_of(False))

        assert float(values.min()) <= low <= 0.0 <= high <= float(values.max())


def test_int4_clips_more_than_int8() -> None:
    histogram = histogram_of(values_of("normal"))

    _, high4 = uniform_error_range(histogram, grid_of(True, Precision.INT4))
    _, high8 = uniform_error_range(histogram, grid_of(True))

    assert high4 < 0.8 * high8


def test_int16_clips_nothing() -> None:
    values = values_of("normal")

    found = rounding_error_range(histogram_of(values), grid_of(True, Precision.INT16))

    assert found == (float(values.min()), float(values.max()))


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_cuts_off_a_lonely_outlier(symmetric: bool) -> None:
    low, high = entropy_range(histogram_of(values_of("outlier")), grid_of(symmetric))

    assert 2.0 < high < 20.0
    assert -20.0 < low < -2.0


def test_entropy_keeps_the_values_a_relu_let_through() -> None:
    _, high = entropy_range(histogram_of(values_of("relu")), grid_of(False))

    assert high > 3.0


def test_percentile_cuts_the_same_share_off_both_tails() -> None:
    values = torch.arange(-1000.0, 1001.0)

    low, high = percentile_range(histogram_of(values), 90.0)

    assert low == pytest.approx(-900.0, abs=2.0)
    assert high == pytest.approx(900.0, abs=2.0)


def test_percentile_100_keeps_all() -> None:
    values = values_of("heavy")

    low, high = percentile_range(histogram_of(values), 100.0)

    assert low == pytest.approx(float(values.min()))
    assert high == pytest.approx(float(values.max()))


@pytest.mark.parametrize("method", list(CalibrationMethod)[2:])
def test_a_tensor_of_zeros_gives_an_empty_range(method: CalibrationMethod) -> None:
    config = TensorQuantConfig(symmetric=False, calibration_method=method)
    observer = HistogramObserver(config, QuantGrid.of(config))
    observer.observe(torch.zeros(10))

    low, high = observer.range()

    assert float(low) == float(high) == 0.0
