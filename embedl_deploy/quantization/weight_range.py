"""A search for the weight range with the least squared error, all channels at once."""

import torch
from torch import Tensor

from embedl_deploy.quantization.fake_quantize import along, quantize_codes
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.scales import symmetric_scale

_SHRINKAGES = (
    *(1.0 - 0.0025 * step for step in range(40)),
    *(0.9 - 0.025 * step for step in range(17)),
)
"""Fine steps where 8 bits gain from falling on the weights, coarse ones where few codes clip."""


def searched_peaks(weight: Tensor, peaks: Tensor, axis: int | None, grid: QuantGrid) -> Tensor:
    """Returns the magnitude to clip each channel at, the one that rounds it with least error.

    Args:
        weight: Any shape, floating point.
        peaks: Largest magnitude of the tensor (a scalar) or of each channel along ``axis``.
        axis: The axis of channels, ``None`` for one range.
        grid: A symmetric grid.

    Returns:
        Peaks of the same shape, between 0.5 and 1 times the ones given.
    """
    channels = weight.float().reshape(1, -1) if axis is None else _as_rows(weight.float(), axis)
    limits = peaks.reshape(-1)
    best_peaks, best_errors = limits, torch.full_like(limits, torch.inf)
    for shrinkage in _SHRINKAGES:
        candidates = limits * shrinkage
        errors = _squared_errors(channels, candidates, grid)
        is_better = errors < best_errors
        best_peaks = torch.where(is_better, candidates, best_peaks)
        best_errors = torch.where(is_better, errors, best_errors)
    return best_peaks.reshape(peaks.shape)


def _as_rows(weight: Tensor, axis: int) -> Tensor:
    return weight.movedim(axis, 0).flatten(1) if weight.dim() > 1 else weight[:, None]


def _squared_errors(rows: Tensor, peaks: Tensor, grid: QuantGrid) -> Tensor:
    scale = symmetric_scale(peaks, grid)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    codes = quantize_codes(rows, scale, zero_point, 0, grid)
    restored = codes.float() * along(0, scale, 2)
    return (restored - rows).square().sum(1)
