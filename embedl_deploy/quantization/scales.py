"""From a range of values to the scale and zero point that represent it."""

import torch
from torch import Tensor

from embedl_deploy.quantization.grid import QuantGrid

SMALLEST_SCALE = 2.0**-96
"""Its inverse and its square are still normal float32 numbers."""


def scale_and_zero_point(low: Tensor, high: Tensor, grid: QuantGrid) -> tuple[Tensor, Tensor]:
    """Returns the scale and zero point whose range holds ``[low, high]`` and zero.

    Symmetric, the larger magnitude falls on the highest code:

        scale = max(-low, high) / quant_max,    zero_point = middle of the codes

    Asymmetric, both ends fall on the ends of the codes:

        scale = (high - low) / (quant_max - quant_min)
        zero_point = quant_min - round(low / scale)

    Where the storage is unsigned, a symmetric range without negative values gets all the codes,
    and zero gets the lowest of them.

    Args:
        low: Smallest value to represent, in the tensor's own units. Any shape, finite.
        high: Largest value to represent, same shape.
        grid: The codes to map to.

    Returns:
        Scale (float32, > 0) and zero point (int32), of the shape of ``low``. Where the range
        is empty (a constant zero, a dead channel) the scale is 1: zero is represented
        exactly and nothing divides by zero.

    Source:
        Jacob et al. 2018, section 2.1, https://arxiv.org/abs/1712.05877
    """
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    whole = (high - low) / (grid.quant_max - grid.quant_min)
    if grid.symmetric:
        halved = torch.maximum(-low, high) / grid.positive_codes
        uses_whole = (low == 0) & grid.is_unsigned
        scale = _never_zero(torch.where(uses_whole, whole, halved))
        middle = torch.full_like(scale, grid.middle, dtype=torch.int32)
        return scale, torch.where(uses_whole, int(grid.quant_min), middle)
    scale = _never_zero(whole)
    zero_point = grid.quant_min - torch.round(low / scale)
    return scale, zero_point.clamp(grid.quant_min, grid.quant_max).to(torch.int32)


def symmetric_scale(peaks: Tensor, grid: QuantGrid) -> Tensor:
    """Returns the scale that puts each largest magnitude on the highest code.

    What ``scale_and_zero_point`` gives for a symmetric grid, in float32 and few operations, since
    an unfrozen weight computes it at each forward.
    """
    return _never_zero(peaks / grid.positive_codes)


def _never_zero(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale.clamp(min=SMALLEST_SCALE), 1.0).to(torch.float32)
