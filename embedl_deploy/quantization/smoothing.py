"""Moves quantization difficulty from activations to weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedl_deploy.quantization.dynamic import round_at_run_time
from embedl_deploy.quantization.fake_quantize import fake_quantize
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.precision import Dynamic
from embedl_deploy.quantization.scales import scale_and_zero_point


def smoothing_factors(activation_peaks: Tensor, weight_peaks: Tensor, strength: float) -> Tensor:
    """Returns the factor that divides each activation channel and multiplies its weights.

    The product of the two is unchanged, so the layer computes the same function while
    its activation outliers shrink:

        factor = activation_peaks ** strength / weight_peaks ** (1 - strength)

    Args:
        activation_peaks: Largest magnitude seen per input channel during calibration,
            in the activation's own units. Shape (in,), all >= 0.
        weight_peaks: Largest weight magnitude per input channel. Shape (in,), all >= 0.
        strength: Share of the difficulty to move, from 0 (none) to 1 (all). The paper
            uses 0.5 for OPT and BLOOM.

    Returns:
        Factors of shape (in,), dimensionless, in float32. A channel with a zero peak
        gets factor 1: it is either dead or unused, and must not divide by zero.

    Raises:
        ValueError: ``strength`` is outside [0, 1], or the shapes differ.

    Source:
        Xiao et al. 2023, SmoothQuant, equation 4, https://arxiv.org/abs/2211.10438
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    if activation_peaks.shape != weight_peaks.shape:
        raise ValueError(
            "need one activation peak and one weight peak per input channel, got shapes "
            f"{tuple(activation_peaks.shape)} and {tuple(weight_peaks.shape)}"
        )
    activation_peaks, weight_peaks = activation_peaks.float(), weight_peaks.float()
    factors = activation_peaks**strength / weight_peaks ** (1.0 - strength)
    usable = (activation_peaks > 0) & (weight_peaks > 0)
    return torch.where(usable, factors, torch.ones_like(factors))


def smoothed_errors(
    rows: Tensor,
    weights: Sequence[Tensor],
    candidates: Sequence[Tensor],
    grid: QuantGrid | None,
    quantizers: Sequence[nn.Module],
    dynamic: Dynamic | None = None,
) -> list[float]:
    """Returns the squared error of linear layers that run quantized, for each choice of factors.

        Σ_layers |x Wᵀ - Q(x / s) Q(W s)ᵀ|²

    Args:
        rows: A sample of what the layers read. Shape (rows, in).
        weights: One per layer, shape (out, in).
        candidates: Factors s to try, shape (in,) each. Ones give the error without smoothing.
        grid: The codes of the activation, ``None`` where it stays in float; its range is that of
            the sample.
        quantizers: One per weight; an identity where it stays in float.
        dynamic: Whether each row of the sample has a range of its own.
    """
    rows = rows.float()
    references = [rows @ weight.float().t() for weight in weights]
    errors: list[float] = []
    for factors in candidates:
        rounded = _rounded(rows / factors, grid, dynamic)
        lost = 0.0
        for weight, quantizer, reference in zip(weights, quantizers, references, strict=True):
            found = rounded @ quantizer(weight.float() * factors).t()
            lost += float((found - reference).square().sum())
        errors.append(lost)
    return errors


def _rounded(values: Tensor, grid: QuantGrid | None, dynamic: Dynamic | None) -> Tensor:
    if grid is None:
        return values
    if dynamic is not None:
        return round_at_run_time(values, grid, dynamic)
    scale, zero_point = scale_and_zero_point(values.amin(), values.amax(), grid)
    return fake_quantize(values, scale, zero_point, grid)
