"""Counts of values on a grid whose result does not depend on the order they came in."""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

BINS = 8192
"""On both sides of zero together. The side with the peak has it in its upper half."""

_HALF = BINS // 2
_SMALLEST_EXPONENT = -110
"""Values below 2**-98 share the bins next to zero; the scaling stays inside float32."""

_CHUNK = 1 << 22
"""Values counted at a time, so that the temporary memory has a bound."""


class Histogram:
    """Streaming counts in bins of width ``2**exponent`` around zero.

    When a value falls outside, neighbouring bins are added in pairs and the width doubles. As
    every width is a power of two and every bin starts at a multiple of it, counting first and
    widening later gives the same counts as the other way round: the result depends on the
    values only, not on their order, and adding the counts of two processes is exact.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.exponent = _SMALLEST_EXPONENT
        self.low = 0.0
        self.high = 0.0

    @property
    def width(self) -> float:
        """Returns the width of one bin, in the units of the values."""
        return 2.0**self.exponent

    def add(self, values: Tensor, low: float, high: float) -> None:
        """Counts ``values``, which are finite and lie in ``[low, high]``."""
        self._include(low, high, _exponent_for(max(-low, high)))
        chunks = cast("Iterable[Tensor]", values.reshape(-1).split(_CHUNK))
        for chunk in chunks:
            self.counts += _count(chunk, self.width)

    def merge(self, other: "Histogram") -> None:
        """Adds what ``other`` counted; exact, in either order."""
        self._include(other.low, other.high, other.exponent)
        self.counts += _widened(other.counts, self.exponent - other.exponent)

    def state(self) -> dict[str, Tensor]:
        """Returns the counts and their grid as tensors."""
        grid = torch.tensor([self.exponent, self.low, self.high], dtype=torch.float64)
        return {"counts": self.counts, "grid": grid}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over the counts of another histogram."""
        exponent, self.low, self.high = (float(value) for value in state["grid"])
        self.exponent = int(exponent)
        self.counts = state["counts"].clone()

    def moments(self) -> Tensor:
        """Returns the running sums of count, value and squared value.

        Values count as the middle of their bin, those of the bin that starts at zero as zero,
        because most of them are what a ReLU cut off.

        Returns:
            Float64, shape (3, BINS + 1). Column ``i`` sums the bins before ``i``.
        """
        counts = self.counts.double()
        values = (torch.arange(BINS, dtype=torch.float64) - _HALF + 0.5) * self.width
        values[_HALF] = 0.0
        sums = torch.stack([counts, counts * values, counts * values * values])
        return torch.nn.functional.pad(sums.cumsum(1), (1, 0))

    def bin_of(self, values: Tensor) -> Tensor:
        """Returns the bin that holds each value, as an index into ``moments``."""
        return (torch.floor(values / self.width).long() + _HALF).clamp_(0, BINS)

    def edge(self, index: int) -> float:
        """Returns the value at which bin ``index`` begins."""
        return (index - _HALF) * self.width

    def magnitudes(self) -> Tensor:
        """Returns the counts of absolute values, int64, shape (BINS / 2,)."""
        return self.counts[_HALF:] + self.counts[:_HALF].flip(0)

    def _include(self, low: float, high: float, exponent: int) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.counts = _widened(self.counts, exponent - self.exponent)
        self.exponent = max(self.exponent, exponent)


def _exponent_for(peak: float) -> int:
    """Returns the smallest width exponent with ``peak < _HALF * width``."""
    if peak == 0.0:
        return _SMALLEST_EXPONENT
    return max(_SMALLEST_EXPONENT, math.frexp(peak)[1] - (_HALF.bit_length() - 1))


def _count(values: Tensor, width: float) -> Tensor:
    # Scaling by a power of two and rounding down are exact: each value has one bin only.
    indices = (values.float() * (1.0 / width)).floor_().add_(_HALF).to(torch.int32)
    return torch.bincount(indices, minlength=BINS).cpu()


def _widened(counts: Tensor, doublings: int) -> Tensor:
    if doublings <= 0:
        return counts
    group = 1 << min(doublings, _HALF.bit_length() - 1)
    kept = BINS // group
    widened = torch.zeros_like(counts)
    widened[_HALF - kept // 2 : _HALF + kept // 2] = counts.view(kept, group).sum(1)
    return widened
