"""Fits a grid to tensors of few different values: pixels, counts and masks are held exactly."""

from typing import cast

import torch
from torch import Tensor

from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.scales import scale_and_zero_point

Range = tuple[float, float]

_MOST = 512
"""Values kept: twice what an 8-bit code can tell apart."""

_TOLERANCE = 1e-3
"""How far from a multiple a value may lie, in steps: pixels divided by 255 are inexact."""

_VALUES, _COUNTS = "distinct_values", "distinct_counts"


class FewValues:
    """The different values seen and how often, while they are few; independent of their order."""

    def __init__(self) -> None:
        self.values: Tensor = torch.zeros(0, dtype=torch.float64)
        """Rising, on the CPU."""

        self.counts: Tensor = torch.zeros(0, dtype=torch.int64)
        self.are_few = True

    def add(self, values: Tensor) -> None:
        """Counts the values of a tensor; costs nothing once there were too many."""
        if not self.are_few:
            return
        flat = values.flatten()
        # A small part settles nearly every tensor.
        self._count(*_unique(flat[: 2 * _MOST]))
        if self.are_few:
            self._count(*_unique(flat[2 * _MOST :]))

    def merge(self, state: dict[str, Tensor]) -> None:
        """Adds what another one saw; exact, in either order."""
        if _VALUES in state:
            self._count(state[_VALUES], state[_COUNTS])
        elif int(state["batches"]):
            self.are_few = False

    def state(self) -> dict[str, Tensor]:
        """Returns what was counted, or nothing if there was too much."""
        return {_VALUES: self.values, _COUNTS: self.counts} if self.are_few else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over what another one saw."""
        self.are_few = _VALUES in state
        if self.are_few:
            self.values, self.counts = state[_VALUES], state[_COUNTS]

    def range(self, grid: QuantGrid, other: Range) -> Range:
        """Returns a range whose steps fit the values, or ``other`` if its squared error is less.

        With g the largest number of which all values are multiples, the step is

            g / floor(codes · g / (high - low)),    or g where that many codes do not reach

        so that the codes hold every value between the ends exactly, and values that were not
        seen are rounded as finely as that allows. The range may end beyond the largest value; it
        ends before it where clipping few values costs less than rounding all.

        Args:
            grid: Integer codes; float8 codes have no one step.
            other: What the extremes or a histogram suggest.
        """
        unit = None if grid.is_float else self._unit(2 * grid.levels)
        if unit is None:
            return other
        low, high = min(float(self.values[0]), 0.0), max(float(self.values[-1]), 0.0)
        codes, extent = grid.quant_max - grid.quant_min, high - low
        if grid.symmetric and (low < 0.0 or not grid.is_unsigned):
            codes, extent = grid.positive_codes, max(-low, high)
        step = unit / max(1, int(codes * unit / extent + _TOLERANCE))
        if grid.symmetric:
            fitting = [(0.0 if low == 0.0 else -codes * step, codes * step)]
        else:
            firsts = (round(low / step), round(high / step) - codes)
            fitting = [(first * step, (first + codes) * step) for first in firsts]
        best = min(fitting, key=lambda found: self._error(found, grid))
        return best if self._error(best, grid) < self._error(other, grid) else other

    def _count(self, values: Tensor, counts: Tensor) -> None:
        both = torch.cat([self.values, values])
        found, places = cast("tuple[Tensor, Tensor]", both.unique(return_inverse=True))
        self.are_few = self.are_few and found.numel() <= _MOST
        if not self.are_few:
            return
        total = torch.zeros(found.numel(), dtype=torch.int64)
        self.counts = total.index_add_(0, places, torch.cat([self.counts, counts]))
        self.values = found

    def _unit(self, most: int) -> float | None:
        """Returns the largest number of which all values are at most ``most`` multiples apart."""
        if not self.are_few or not self.values.any():
            return None
        with_zero = torch.cat([self.values, torch.zeros(1, dtype=torch.float64)])
        known = cast("Tensor", with_zero.unique())
        gap, peak = float(known.diff().min()), float(known.abs().max())
        parts = torch.arange(1, int(most * gap / (known[-1] - known[0])) + 1, dtype=torch.float64)
        multiples_at_peak = (peak * parts / gap).round()
        multiples = known[:, None] / peak * multiples_at_peak
        is_unit = (multiples - multiples.round()).abs().amax(0) < _TOLERANCE
        return peak / float(multiples_at_peak[is_unit][0]) if is_unit.any() else None

    def _error(self, found: Range, grid: QuantGrid) -> float:
        low, high = torch.tensor(found, dtype=torch.float64)
        scale, zero_point = (value.double() for value in scale_and_zero_point(low, high, grid))
        codes = torch.clamp(
            (self.values / scale).round() + zero_point, grid.quant_min, grid.quant_max
        )
        return float(((codes - zero_point) * scale - self.values).square() @ self.counts.double())


def _unique(values: Tensor) -> tuple[Tensor, Tensor]:
    found, counts = cast("tuple[Tensor, Tensor]", values.unique(return_counts=True))
    return found.double().cpu(), counts.cpu()
