"""The arithmetic of folding a batch norm into the convolution before it."""

import torch
from torch import Tensor

from embedl_deploy.modules.fused import optional_parameter, wide_dtype
from embedl_deploy.modules.kinds import TRANSPOSED_CONVOLUTIONS, BatchNorm, Convolution


def norm_scale(norm: BatchNorm) -> Tensor:
    """Returns s = γ / √(σ² + ε) from the running statistics, shape (channels,)."""
    variance = running(norm.running_var)
    dtype = wide_dtype(variance.dtype)
    scale = torch.rsqrt(variance.to(dtype) + norm.eps)
    gain = optional_parameter(norm, "weight")
    return scale if gain is None else gain.to(dtype) * scale


def fold_norm(conv: Convolution, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns the weight and bias of the one convolution that equals ``norm(conv(x))``.

        W' = s · W
        b' = s · (b - μ) + β

    Computed in float32 or wider, returned in the dtype of the convolution's weight.

    Source: Jacob et al. 2018, section 3.2, https://arxiv.org/abs/1712.05877
    """
    scale = norm_scale(norm)
    shift = -running(norm.running_mean).to(scale.dtype) * scale
    bias, offset = optional_parameter(conv, "bias"), optional_parameter(norm, "bias")
    if bias is not None:
        shift = shift + bias.to(scale.dtype) * scale
    if offset is not None:
        shift = shift + offset.to(scale.dtype)
    dtype = conv.weight.dtype
    return scale_output_channels(conv, scale).to(dtype), shift.to(dtype)


def scale_output_channels(conv: Convolution, scale: Tensor) -> Tensor:
    """Returns the convolution's weight with output channel i multiplied by ``scale[i]``.

    A transposed convolution stores (in, out / groups, ...): its input channels come in
    ``groups`` blocks, and block g makes the output channels of group g.
    """
    weight = conv.weight.to(scale.dtype)
    spatial = (1,) * (weight.dim() - 2)
    if not isinstance(conv, TRANSPOSED_CONVOLUTIONS):
        return weight * scale.reshape(-1, 1, *spatial)
    per_group = weight.reshape(conv.groups, -1, *weight.shape[1:])
    scaled = per_group * scale.reshape(conv.groups, 1, -1, *spatial)
    return scaled.reshape(weight.shape)


def running(statistic: Tensor | None) -> Tensor:
    """Returns a running statistic that must be there."""
    if statistic is None:
        raise ValueError(
            "folding needs a batch norm with running statistics, got one with "
            "track_running_stats=False: build it with track_running_stats=True"
        )
    return statistic
