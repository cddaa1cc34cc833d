"""Balances the ranges of two layers channel by channel."""

import torch
from torch import Tensor

_LARGEST_EXPONENT = 16
"""Of a factor: 2⁻¹⁶ to 2¹⁶ keeps parameters far from the ends of every floating-point type."""


def equalising_factors(produced: Tensor, read: Tensor) -> Tensor:
    """Returns what to divide each channel by where it is made and multiply it by where it is read.

        factor = √(produced / read), rounded to a power of two

    Afterwards the two ranges are the same up to a factor of two. A power of two changes exponents
    only, so that layers scaled this way compute the same bits.

    Args:
        produced: Largest magnitude of the weights that make each channel. Shape (channels,).
        read: Largest magnitude of the weights that read it. Same shape.

    Returns:
        Shape (channels,), float32; 1 for a channel that is dead on either side.

    Source: Nagel et al. 2019, section 4.1, https://arxiv.org/abs/1906.04721; the powers of two are
        ours, so that nothing is rounded.
    """
    exponents = torch.round(0.5 * (produced.double() / read.double()).log2())
    usable = (produced > 0) & (read > 0) & torch.isfinite(exponents)
    exponents = torch.where(usable, exponents, 0.0)
    return torch.exp2(exponents.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)).float()
