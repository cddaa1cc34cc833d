import pytest
import torch
from torch import Tensor

from embedl_deploy.quantization.few_values import FewValues
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.scales import scale_and_zero_point
from embedl_deploy.quantize import Precision, TensorQuantConfig

ASYMMETRIC = QuantGrid.of(TensorQuantConfig(symmetric=False))
SYMMETRIC = QuantGrid.of(TensorQuantConfig(symmetric=True))
UNSIGNED = QuantGrid.of(TensorQuantConfig(symmetric=True), torch.uint8)
INT4 = QuantGrid.of(TensorQuantConfig(Precision.INT4, symmetric=False))

GREYS = torch.arange(17) / 16
PIXELS = torch.arange(256) / 255


def fitted(values: Tensor, grid: QuantGrid) -> tuple[float, float]:
    few = FewValues()
    few.add(values)
    return few.range(grid, extremes(values))


def extremes(values: Tensor) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def rounded(values: Tensor, found: tuple[float, float], grid: QuantGrid) -> Tensor:
    low, high = torch.tensor(found, dtype=torch.float64)
    scale, zero_point = scale_and_zero_point(low, high, grid)
    codes = torch.clamp((values / scale).round() + zero_point, grid.quant_min, grid.quant_max)
    return (codes - zero_point) * scale


@pytest.mark.parametrize("grid", [ASYMMETRIC, SYMMETRIC, UNSIGNED])
@pytest.mark.parametrize(
    "values",
    [
        GREYS,
        GREYS - 0.25,
        GREYS * -3.0,
        torch.arange(128) / 127,
        torch.arange(-63, 64) * 0.1,
        torch.tensor([-1.0, 0.5, 2.0]),
        torch.tensor([0.0, 2.0, 5.0]),
    ],
)
def test_multiples_of_one_step_are_held_exactly(values: Tensor, grid: QuantGrid) -> None:
    found = fitted(values, grid)

    torch.testing.assert_close(rounded(values, found, grid), values, atol=1e-6, rtol=0.0)


def test_the_extremes_round_what_the_step_holds() -> None:
    off = rounded(GREYS, extremes(GREYS), ASYMMETRIC) - GREYS

    assert off.abs().max() > 1e-3


def test_the_step_is_as_fine_as_the_codes_allow() -> None:
    # 15 steps from one grey to the next, 240 to the last.
    assert fitted(GREYS, ASYMMETRIC) == pytest.approx((0.0, 255 / 240))
    assert fitted(GREYS, SYMMETRIC) == pytest.approx((0.0, 127 / 112))
    assert fitted(-GREYS, SYMMETRIC) == pytest.approx((-127 / 112, 127 / 112))


def test_one_value_of_many_is_clipped_where_that_costs_less() -> None:
    values = torch.arange(-128, 129) / 128
    assert fitted(values, ASYMMETRIC) == (-1.0, 127 / 128)

    ends = torch.cat([values, torch.full((10_000,), 1.0), torch.full((10_000,), -1.0)])
    assert fitted(ends, ASYMMETRIC) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "grid"),
    [
        (torch.rand(300, generator=torch.Generator().manual_seed(0)), ASYMMETRIC),
        (torch.arange(400.0), ASYMMETRIC),  # more than the codes, and no few of them
        (torch.arange(1000.0), ASYMMETRIC),
        (PIXELS, ASYMMETRIC),  # the extremes fit already
        (PIXELS, INT4),
        (torch.zeros(5), ASYMMETRIC),
        (torch.full((5,), 0.3), ASYMMETRIC),
        (GREYS, QuantGrid.of(TensorQuantConfig(Precision.FP8_E4M3))),
    ],
)
def test_other_values_keep_their_range(values: Tensor, grid: QuantGrid) -> None:
    assert fitted(values, grid) == pytest.approx(extremes(values))


def test_processes_agree_whatever_they_saw_first() -> None:
    first, second, third = GREYS[:5], GREYS[5:], GREYS[2:9]
    alone, one, other = FewValues(), FewValues(), FewValues()
    for part in (first, second, third):
        alone.add(part)
    one.add(third)
    other.add(second)
    other.add(first)

    one.merge({**other.state(), "batches": torch.tensor(2)})
    one.merge({"batches": torch.tensor(0)})

    assert torch.equal(one.values, alone.values)
    assert torch.equal(one.counts, alone.counts)


def test_too_many_values_anywhere_are_too_many() -> None:
    many = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    seen, one = FewValues(), FewValues()
    seen.add(many)
    one.add(GREYS)

    one.merge({**seen.state(), "batches": torch.tensor(1)})
    one.add(GREYS)
    loaded = FewValues()
    loaded.load_state(one.state())

    assert seen.state() == one.state() == loaded.state() == {}
    assert loaded.range(ASYMMETRIC, (-1.0, 3.0)) == (-1.0, 3.0)
