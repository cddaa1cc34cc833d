import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedl_deploy.quantization import Precision, QuantGrid, TensorQuantConfig
from embedl_deploy.quantization.fake_quantize import fake_quantize
from embedl_deploy.quantization.scales import (
    SMALLEST_SCALE,
    scale_and_zero_point,
    symmetric_scale,
)

INT8 = TensorQuantConfig(Precision.INT8)
ASYMMETRIC = TensorQuantConfig(Precision.INT8, symmetric=False)
LARGEST = 2.0**99
FINITE = st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=False)


def test_symmetric_puts_the_larger_magnitude_on_the_highest_code() -> None:
    scale, zero_point = scale_and_zero_point(
        torch.tensor(-2.0), torch.tensor(1.0), QuantGrid.of(INT8)
    )

    assert float(scale) == pytest.approx(2.0 / 127)
    assert int(zero_point) == 0


def test_asymmetric_uses_every_code() -> None:
    scale, zero_point = scale_and_zero_point(
        torch.tensor(-1.0), torch.tensor(3.0), QuantGrid.of(ASYMMETRIC)
    )

    assert float(scale) == pytest.approx(4.0 / 255)
    assert int(zero_point) == -64


def test_unsigned_storage_stands_for_the_same_values() -> None:
    values = torch.linspace(-1.5, 3.5, 101)
    low, high = torch.tensor(-1.0), torch.tensor(3.0)

    rounded = [
        fake_quantize(values, *scale_and_zero_point(low, high, grid), grid)
        for grid in (QuantGrid.of(ASYMMETRIC), QuantGrid.of(ASYMMETRIC, torch.uint8))
    ]

    assert torch.equal(*rounded)


def test_unsigned_symmetric_storage_gives_all_codes_to_what_is_never_negative() -> None:
    grid = QuantGrid.of(INT8, torch.uint8)

    scale, zero_point = scale_and_zero_point(
        torch.tensor([0.0, -1.0]), torch.tensor([2.55, 1.27]), grid
    )

    torch.testing.assert_close(scale, torch.tensor([0.01, 0.01]))
    assert zero_point.tolist() == [0, 128]


@given(FINITE, FINITE)
def test_zero_is_always_represented_exactly(first: float, second: float) -> None:
    low, high = torch.tensor(min(first, second)), torch.tensor(max(first, second))
    for grid in (QuantGrid.of(INT8), QuantGrid.of(ASYMMETRIC), QuantGrid.of(INT8, torch.uint8)):
        scale, zero_point = scale_and_zero_point(low, high, grid)

        assert float(scale) >= SMALLEST_SCALE
        assert grid.quant_min <= int(zero_point) <= grid.quant_max
        assert float(fake_quantize(torch.zeros(1), scale, zero_point, grid)) == 0.0


def test_an_empty_range_gets_scale_one_and_a_tiny_one_a_normal_scale() -> None:
    low, high = torch.tensor([0.0, -1e-37]), torch.tensor([0.0, 1e-37])

    scale, _ = scale_and_zero_point(low, high, QuantGrid.of(INT8))

    assert scale.tolist() == [1.0, pytest.approx(SMALLEST_SCALE)]


@given(st.lists(st.floats(0, LARGEST, width=32, allow_subnormal=False), min_size=1, max_size=8))
def test_the_short_way_for_weights_agrees_with_the_long_one(peaks: list[float]) -> None:
    grid, limits = QuantGrid.of(INT8), torch.tensor(peaks)

    torch.testing.assert_close(
        symmetric_scale(limits, grid), scale_and_zero_point(-limits, limits, grid)[0]
    )


def test_float8_maps_the_peak_to_the_largest_code() -> None:
    grid = QuantGrid.of(TensorQuantConfig(Precision.FP8_E4M3))

    scale, _ = scale_and_zero_point(torch.tensor(-896.0), torch.tensor(10.0), grid)

    assert float(scale) == 2.0
