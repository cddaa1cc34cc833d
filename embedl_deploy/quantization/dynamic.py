"""Quantizers whose scale is taken from the very tensor that they round, at each call."""

import torch
from torch import Tensor, nn

from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.precision import Dynamic
from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantization.scales import SMALLEST_SCALE
from embedl_deploy.quantization.stub import QuantStub


def dynamic_scale(x: Tensor, grid: QuantGrid, dynamic: Dynamic) -> tuple[Tensor, Tensor]:
    """Returns the scale and zero point whose range holds the values of ``x``, and zero.

    As ``scale_and_zero_point``, but in float32 and without a branch on the values: where all are
    zero the scale is the smallest there is, and zero is still exact.

    Args:
        x: Floating point.
        grid: The codes.
        dynamic: Whether each token, the values along the last axis, has a scale of its own.

    Returns:
        Scale (float32, > 0) and zero point (int32): scalars, or of shape (..., 1) per token.
    """
    keeps = dynamic is Dynamic.PER_TOKEN
    axes = (-1,) if keeps else tuple(range(x.dim()))
    x = x if x.dtype == torch.float32 else x.float()
    if grid.symmetric:
        scale = x.abs().amax(axes, keeps) / grid.positive_codes
        scale = scale.clamp(min=SMALLEST_SCALE)
        return scale, torch.full_like(scale, grid.middle, dtype=torch.int32)
    low, high = x.amin(axes, keeps).clamp(max=0.0), x.amax(axes, keeps).clamp(min=0.0)
    scale = ((high - low) / (grid.quant_max - grid.quant_min)).clamp(min=SMALLEST_SCALE)
    zero_point = grid.quant_min - torch.round(low / scale)
    return scale, zero_point.clamp(grid.quant_min, grid.quant_max).to(torch.int32)


def round_at_run_time(x: Tensor, grid: QuantGrid, dynamic: Dynamic) -> Tensor:
    """Returns the values that the codes of ``x`` stand for, in its dtype.

    Nothing is clipped, so that the gradient is that of the identity. Rounds as torch's
    ``quantized_decomposed`` operations do, which add the zero point before rounding per token, and
    after it per tensor.
    """
    values = x.detach()
    scale, zero_point = dynamic_scale(values, grid, dynamic)
    scaled = values.float() * (1.0 / scale)
    if dynamic is Dynamic.PER_TOKEN:
        codes = torch.round(scaled + zero_point)
    else:
        codes = torch.round(scaled) + zero_point
    codes = codes.clamp(grid.quant_min, grid.quant_max)
    rounded = ((codes - zero_point) * scale).to(x.dtype)
    return x + (rounded - values) if x.requires_grad else rounded


class DynamicStub(QuantStub):
    """Rounds a tensor with a scale of its own at each call: nothing to calibrate.

    While calibration looks at other tensors it passes values unrounded, as other stubs do.
    """

    quantizing = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizing:
            return x
        assert self.config.dynamic is not None, "made for a dynamic configuration"
        return round_at_run_time(x, self.grid, self.config.dynamic)

    def start_observing(self) -> None:
        self.quantizing = False

    def finish_observing(self) -> None:
        self.quantizing = True

    def extra_repr(self) -> str:
        return str(self.config)


class DynamicQuantizeDequantize(nn.Module):
    """The operations that engines and exporters know, behind those that compute the scale."""

    def __init__(self, grid: QuantGrid, dynamic: Dynamic) -> None:
        super().__init__()
        self.grid = grid
        self.dynamic = dynamic

    def forward(self, x: Tensor) -> Tensor:
        """Returns the values that the codes of ``x`` stand for, in the dtype of ``x``."""
        grid, ops = self.grid, decomposed()
        scale, zero_point = dynamic_scale(x, grid, self.dynamic)
        layout = (scale, zero_point, grid.quant_min, grid.quant_max, grid.dtype)
        if self.dynamic is Dynamic.PER_TOKEN:
            codes = ops.quantize_per_token.default(x, *layout)
            return ops.dequantize_per_token.default(codes, *layout, x.dtype)
        codes = ops.quantize_per_tensor.tensor(x, *layout)
        out_dtype = {} if x.dtype == torch.float32 else {"out_dtype": x.dtype}
        return ops.dequantize_per_tensor.tensor(codes, *layout, **out_dtype)
