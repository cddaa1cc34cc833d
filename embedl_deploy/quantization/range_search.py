"""Searches of a histogram for the range that represents it best."""

from collections.abc import Callable

import torch
from torch import Tensor

from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.histogram import Histogram
from embedl_deploy.quantization.scales import scale_and_zero_point

Range = tuple[float, float]

_FINEST_SEARCHED = 1 << 12
"""Grids with more codes than this keep the whole range: no clipping buys them anything."""


def uniform_error_range(histogram: Histogram, grid: QuantGrid) -> Range:
    """Returns the range with the least squared error, taking values as uniform in each step.

    With the step Δ of a range [a, b],

        error(a, b) = Δ² / 12 · N(a < x < b) + Σ_{x > b} (x - b)² + Σ_{x < a} (a - x)²

    Exact zeros are left out of N: every grid represents them. Approximate where few values
    fall in a step; the error of a range is then off by at most Δ² / 6 per value.

    Source:
        The L2 search of torch.ao.quantization.observer.HistogramObserver, vectorised.
    """
    if grid.levels > _FINEST_SEARCHED:
        return histogram.low, histogram.high
    moments = histogram.moments()
    zero = histogram.bin_of(torch.zeros((), dtype=torch.float64))
    zeros = moments[0, zero + 1] - moments[0, zero]

    def error(low: Tensor, high: Tensor) -> Tensor:
        step, _ = scale_and_zero_point(low, high, grid)
        before = moments[:, histogram.bin_of(low)]
        after = moments[:, -1:] - moments[:, histogram.bin_of(high + histogram.width)]
        inside = moments[0, -1] - before[0] - after[0] - zeros
        return step.double() ** 2 / 12 * inside + _spread(before, low) + _spread(after, high)

    return _best_range(error, histogram, grid)


def rounding_error_range(histogram: Histogram, grid: QuantGrid) -> Range:
    """Returns the range with the least squared error when each bin is really rounded.

        error(a, b) = Σ_codes Σ_{x nearest to code} (x - value(code))²

    Exact up to the width of a bin. The sums over the cells of a code come from running sums, so
    that one range costs as many steps as there are codes, not bins.
    """
    if grid.levels > _FINEST_SEARCHED:
        return histogram.low, histogram.high
    moments = histogram.moments()
    codes = grid.codes()
    between = (codes[1:] + codes[:-1]) / 2

    def error(low: Tensor, high: Tensor) -> Tensor:
        scale, zero_point = scale_and_zero_point(low, high, grid)
        scale, zero_point = scale.double()[:, None], zero_point.double()[:, None]
        cuts = moments[:, histogram.bin_of((between - zero_point) * scale)]
        first = torch.zeros_like(cuts[:, :, :1])
        last = moments[:, -1, None, None].expand_as(first)
        cells = torch.cat([first, cuts, last], 2).diff(dim=2)
        return _spread(cells, (codes - zero_point) * scale).sum(1)

    return _best_range(error, histogram, grid)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Returns the range that keeps ``percentile`` percent of the values between its ends.

    The share cut off is the same on both tails; a side without values ends at zero. Exact up to
    the width of a bin.
    """
    running = histogram.moments()[0]
    cut = running[-1] * (100.0 - percentile) / 200.0
    low_bin = torch.searchsorted(running, cut, right=True) - 1
    high_bin = torch.searchsorted(running, running[-1] - cut)
    low, high = (histogram.edge(int(index)) for index in (low_bin, high_bin))
    return min(max(low, histogram.low), 0.0), max(min(high, histogram.high), 0.0)


def entropy_range(histogram: Histogram, grid: QuantGrid, candidates: int = 128) -> Range:
    """Returns the range whose rounded distribution loses the least information.

    For each threshold t, P is the distribution of min(abs(x), t) and Q the same counts shared
    evenly inside each of the grid's steps; the threshold with the least KL(P, Q) wins. With S and
    N the count and the occupied bins of a step, Σ p log q needs one term per step.

    Source:
        Migacz 2017, 8-bit inference with TensorRT, GTC 2017.
    """
    if grid.levels > _FINEST_SEARCHED:
        return histogram.low, histogram.high
    counts = histogram.magnitudes().double()
    # Most of what lies next to zero was cut off by a ReLU and fits every grid.
    counts[0] = counts[1]
    peak = max(-histogram.low, histogram.high)
    last = min(int(peak / histogram.width) + 1, counts.numel())
    is_one_sided = not grid.symmetric and min(-histogram.low, histogram.high) == 0.0
    steps = grid.levels if is_one_sided else grid.levels // 2
    if last <= steps:
        return histogram.low, histogram.high
    ends = torch.linspace(steps, last, min(candidates, last - steps + 1)).round().long()
    best = int(ends[torch.argmin(_divergences(counts, ends, steps))])
    threshold = peak if best == last else best * histogram.width
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _best_range(
    error: Callable[[Tensor, Tensor], Tensor], histogram: Histogram, grid: QuantGrid
) -> Range:
    """Zooms in on the least error over both ends, in powers of two of the whole range."""
    low, high = histogram.low, histogram.high
    if grid.symmetric:
        high = max(-low, high)
        low = -high
    centre, reach = (3.0, 3.0), 3.0
    best = (low, high)
    for points, together in ((17, True), (5, grid.symmetric), (5, grid.symmetric)):
        shifts = torch.linspace(-reach, reach, points, dtype=torch.float64)
        shrink_low, shrink_high = _candidates(centre, shifts, (low, high), together)
        lows = (low * torch.exp2(-shrink_low)).clamp(min=histogram.low)
        highs = (high * torch.exp2(-shrink_high)).clamp(max=histogram.high)
        winner = int(torch.argmin(error(lows, highs)))
        best = (float(lows[winner]), float(highs[winner]))
        centre = (float(shrink_low[winner]), float(shrink_high[winner]))
        reach *= 2 / (points - 1)
    return best


def _candidates(
    centre: Range, shifts: Tensor, ends: Range, together: bool
) -> tuple[Tensor, Tensor]:
    """Returns the shrinkages of the low and the high end to try, one pair per candidate."""
    lows, highs = ((middle + shifts).clamp(min=0.0) for middle in centre)
    if together:
        return highs, highs
    fixed = torch.zeros(1, dtype=torch.float64)
    pairs = torch.cartesian_prod(lows if ends[0] < 0 else fixed, highs if ends[1] > 0 else fixed)
    return pairs[:, 0], pairs[:, 1]


def _spread(moments: Tensor, value: Tensor) -> Tensor:
    """Returns Σ (x - value)² of the values whose count, sum and square sum are given."""
    count, total, squares = moments.unbind(0)
    return (squares - 2 * value * total + value * value * count).clamp(min=0.0)


def _divergences(counts: Tensor, ends: Tensor, steps: int) -> Tensor:
    """Returns KL(P, Q) for a range that ends before each bin of ``ends``."""
    occupied = (counts > 0).double()
    running = _from_zero(counts)
    running_occupied = _from_zero(occupied)
    running_entropy = _from_zero(_x_log_y(counts, counts))
    total = running[-1]
    cuts = (torch.arange(steps + 1)[None] * ends[:, None] + steps - 1) // steps
    in_step = running[cuts].diff(dim=1)
    bins_in_step = running_occupied[cuts].diff(dim=1).clamp(min=1.0)
    kept, clipped = running[ends], total - running[ends]
    edge = counts[ends - 1]
    # Half a count stands for an empty last bin, which would make the divergence infinite.
    edge_share = (in_step[:, -1] / bins_in_step[:, -1]).clamp(min=0.5)
    own = running_entropy[ends] - _x_log_y(edge, edge)
    own = own + _x_log_y(edge + clipped, edge + clipped)
    cross = _x_log_y(in_step, in_step / bins_in_step).sum(1)
    cross = cross + clipped * torch.log(edge_share)
    return (own - cross) / total - torch.log(total / kept.clamp(min=1.0))


def _from_zero(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))


def _x_log_y(x: Tensor, y: Tensor) -> Tensor:
    """Returns x · log(y), zero where x is zero."""
    return torch.where(x == 0, 0.0, x * torch.log(y))
