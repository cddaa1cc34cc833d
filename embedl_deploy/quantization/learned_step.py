"""Rounding whose step is trained together with the weights."""

import math

import torch
from torch import Tensor, nn

from embedl_deploy.quantization.fake_quantize import along
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.scales import SMALLEST_SCALE


class LearnedStep(nn.Module):
    """Rounds with the step ``scale · exp(log_growth)``, where the growth is a parameter.

    With x' = clamp(round(x / s) + z) - z, the output is s · x' and its derivatives are

        ∂/∂x = 1 inside the range, 0 outside
        ∂/∂s = round(x / s) - x / s inside the range, the code at the end outside

    The gradient of the step is multiplied by 1 / √(values · highest code), which brings its size
    near that of the weights. Training the logarithm keeps the step positive, and makes one
    learning rate right for steps of any size.

    Source: Esser et al. 2020, LSQ, sections 2.1 and 2.2, https://arxiv.org/abs/1902.08153; the
        logarithm: Jain et al. 2020, TQT, section 3.4, https://arxiv.org/abs/1903.08066
    """

    def __init__(self, scale: Tensor, axis: int | None, grid: QuantGrid) -> None:
        super().__init__()
        self.axis = axis
        self.grid = grid
        self.log_growth = nn.Parameter(torch.zeros_like(scale))

    def grow(self, scale: Tensor) -> None:
        """Multiplies ``scale`` by what was learned since the last call, which is then forgotten.

        Optimizers see gradients and add updates: that the parameter starts at zero again is
        nothing to them.
        """
        with torch.no_grad():
            scale.mul_(self.log_growth.exp()).clamp_(min=SMALLEST_SCALE)
            self.log_growth.zero_()

    def forward(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Returns ``values`` rounded; dtype kept, arithmetic in float32.

        Args:
            values: Any shape, floating point.
            scale: The step before the last update, float32: a scalar, or one per index of the axis.
            zero_point: int32, of the shape of ``scale``.
        """
        gain = 1.0 / math.sqrt(max(1, values.numel() // scale.numel()) * self.grid.positive_codes)
        step = scale * _scale_gradient(self.log_growth, gain).exp()
        if self.axis is not None:
            step = along(self.axis, step, values.dim())
            zero_point = along(self.axis, zero_point, values.dim())
        rounded = _rounded(values.float() * (1.0 / step), zero_point, self.grid) * step
        return rounded.to(values.dtype)


def _rounded(scaled: Tensor, zero_point: Tensor, grid: QuantGrid) -> Tensor:
    """Returns the codes, counted from the zero point, with the gradient of the clamp alone."""
    low, high = grid.quant_min, grid.quant_max
    if grid.is_float:
        clamped = scaled.clamp(low, high)
        return _straight_through(clamped, clamped.detach().to(grid.dtype).float())
    whole = _straight_through(scaled, torch.round(scaled.detach()))
    return (whole + zero_point).clamp(low, high) - zero_point


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Returns ``rounded`` with the gradient of ``values``."""
    return values + (rounded - values).detach()


def _scale_gradient(parameter: Tensor, gain: float) -> Tensor:
    """Returns ``parameter``, whose gradient arrives multiplied by ``gain``."""
    return _straight_through(parameter * gain, parameter.detach())
