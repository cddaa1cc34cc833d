"""Learns for each weight whether it is rounded up or down, by what that does to the output."""

import math

import torch
from torch import Tensor

from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.weight_rounding import nearest_codes, output_error

_LOW, _HIGH = -0.1, 1.1
"""γ and ζ: the sigmoid is stretched beyond 0 and 1, so that it can reach both."""

_BETAS = (20.0, 2.0)
_FREE = 0.2
"""Share of the steps before rounding is asked for."""

_STRENGTH = 1.0
"""λ, for errors in units of what the nearest codes leave in a row."""

_RATE = 0.05
_STEPS = 600


def adaptive_codes(
    weight: Tensor, scale: Tensor, grid: QuantGrid, gram: Tensor, steps: int = _STEPS
) -> Tensor:
    """Returns codes, each one of the two next to its weight, that fit the inputs of a layer.

    Over continuous V, with H = E[x xᵀ] and w̃ = s · clip(floor(w / s) + h(V), low, high),

        minimise  Σ_rows (w - w̃) H (w - w̃)ᵀ + λ Σ (1 - |2 h(V) - 1|^β)
        h(V) = clip(sigmoid(V) (ζ - γ) + γ, 0, 1)

    by Adam from h(V) = w / s - floor(w / s); β falls from 20 to 2, which drives h to 0 or 1. A row
    whose nearest codes leave less error keeps them, so that no row gets worse. Each row's error is
    in units of that of its nearest codes, so that one λ is right for all. Unlike equation 25, the
    activation behind the layer is left out: H is then all that is needed of the data.

    Args:
        weight: Shape (groups, out, in), floating point. Groups have inputs of their own.
        scale: Shape (groups, out, 1) or (groups, out, in), positive. The zero point is 0.
        grid: Integer codes.
        gram: H, shape (groups, in, in), symmetric and positive semidefinite.
        steps: Of Adam.

    Returns:
        Codes, float32, shape (groups, out, in).

    Source: Nagel et al. 2020, AdaRound, section 3.3 (equations 23, 24), on the per-layer problem
        of section 3.2, https://arxiv.org/abs/2004.10568
    """
    nearest = nearest_codes(weight.double(), scale.double(), grid)
    limit = output_error(weight, scale, nearest, gram)
    scaled = (weight / scale).float()
    below = torch.floor(scaled)
    share = (scaled - below - _LOW) / (_HIGH - _LOW)
    # A row without an error to lower has nothing to learn from.
    unit = torch.where(limit > 0, limit, 1.0).sqrt()[:, :, None]
    factor, gram32 = (scale / unit).float(), gram.float()
    with torch.enable_grad():
        logits = torch.logit(share).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=_RATE)
        for step in range(steps):
            up = _rectified(logits)
            lost = (scaled - _clipped(below + up, grid)) * factor
            loss = ((lost @ gram32) * lost).sum()
            if step >= _FREE * steps:
                undecided = 1.0 - (2.0 * up - 1.0).abs().pow(_beta(step / steps))
                loss = loss + _STRENGTH * undecided.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    codes = _clipped(below + (_rectified(logits.detach()) >= 0.5), grid)
    is_better = output_error(weight, scale, codes, gram) < limit
    return torch.where(is_better[:, :, None], codes, nearest.float())


def _rectified(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0.0, 1.0)


def _clipped(codes: Tensor, grid: QuantGrid) -> Tensor:
    return codes.clamp(grid.quant_min, grid.quant_max)


def _beta(progress: float) -> float:
    """Returns the exponent, which falls along a cosine once rounding is asked for."""
    done = (progress - _FREE) / (1.0 - _FREE)
    return _BETAS[1] + (_BETAS[0] - _BETAS[1]) * 0.5 * (1.0 + math.cos(math.pi * done))
