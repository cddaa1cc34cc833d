"""Rounds tensors to the codes of a grid and back, with a gradient that passes through."""

import torch
from torch import Tensor

from embedl_deploy.quantization.grid import QuantGrid


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, grid: QuantGrid) -> Tensor:
    """Returns the values that the codes of ``values`` stand for.

        code = clamp(round(x / scale) + zero_point, quant_min, quant_max)
        x' = (code - zero_point) * scale

    The gradient is that of the identity inside the range and zero outside of it.

    Args:
        values: Any shape, floating point.
        scale: Positive, float32, a scalar.
        zero_point: int32, a scalar. Not read for float8 codes.
        grid: The codes.
    """
    if grid.is_float:
        return _round_to_float8(values, scale, grid)
    low, high = int(grid.quant_min), int(grid.quant_max)
    wide = _as(torch.float32, values)
    rounded = torch.fake_quantize_per_tensor_affine(wide, scale, zero_point, low, high)
    return _as(values.dtype, rounded)


def fake_quantize_per_channel(
    values: Tensor, scale: Tensor, zero_point: Tensor, axis: int, grid: QuantGrid
) -> Tensor:
    """Returns the same with one scale and zero point for each index along ``axis``."""
    if grid.is_float:
        return _round_to_float8(values, along(axis, scale, values.dim()), grid)
    low, high = int(grid.quant_min), int(grid.quant_max)
    wide = _as(torch.float32, values)
    rounded = torch.fake_quantize_per_channel_affine(wide, scale, zero_point, axis, low, high)
    return _as(values.dtype, rounded)


def quantize_codes(
    values: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, grid: QuantGrid
) -> Tensor:
    """Returns the codes themselves, in the grid's dtype.

    Args:
        values: Any shape, floating point.
        scale: A scalar, or one per index along ``axis``.
        zero_point: int32, of the shape of ``scale``.
        axis: The axis of channels, ``None`` for one scale.
        grid: The codes.
    """
    if axis is not None:
        scale = along(axis, scale, values.dim())
        zero_point = along(axis, zero_point, values.dim())
    # The inverse first, as torch's quantize ops do: x / scale can round the other way.
    scaled = values.float() * (1.0 / scale)
    if grid.is_float:
        return scaled.clamp(grid.quant_min, grid.quant_max).to(grid.dtype)
    codes = torch.round(scaled) + zero_point
    return codes.clamp(grid.quant_min, grid.quant_max).to(grid.dtype)


def along(axis: int, per_channel: Tensor, dimensions: int) -> Tensor:
    """Returns a vector shaped so that it broadcasts along one axis of a tensor."""
    shape = [1] * dimensions
    shape[axis] = -1
    return per_channel.reshape(shape)


def _round_to_float8(values: Tensor, scale: Tensor, grid: QuantGrid) -> Tensor:
    scaled = (_as(torch.float32, values) * (1.0 / scale)).clamp(grid.quant_min, grid.quant_max)
    rounded = scaled.detach().to(grid.dtype).float()
    # The difference is a constant to autograd: the gradient is that of the clamp.
    passed_through = scaled + (rounded - scaled).detach()
    return _as(values.dtype, passed_through * scale)


def _as(dtype: torch.dtype, values: Tensor) -> Tensor:
    # A cast to the same dtype is no operation but leaves two nodes in an exported graph.
    return values if values.dtype == dtype else values.to(dtype)
