"""Quantizers for training: in place of those of a calibrated graph, under the same names."""

import torch
from torch import Tensor

from embedl_deploy.quantization.groups import in_groups, out_of_groups
from embedl_deploy.quantization.learned_step import LearnedStep
from embedl_deploy.quantization.scales import scale_and_zero_point
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

AVERAGE_WEIGHT = 0.01
"""Share of each training batch in the range of an activation that is followed."""


class TrainableStub(QuantStub):
    """Rounds an activation to a range that is learned, or that follows the activation.

    The range starts as calibration left it. A followed one is the exponential average of each
    training batch's extremes.

    Source: Krishnamoorthi 2018, section 2.5 (averages), https://arxiv.org/abs/1806.08342
    """

    extremes: Tensor

    def __init__(self, calibrated: QuantStub, learns_step: bool) -> None:
        super().__init__(calibrated.config, calibrated.grid.dtype, calibrated.site)
        self.grid = calibrated.grid
        self.quantizing = calibrated.quantizing
        self.follows = not learns_step
        """Whether the range follows the activation in training mode."""

        for name in ("scale", "zero_point"):
            setattr(self, name, getattr(calibrated, name).clone())
        self.register_buffer("extremes", self._extremes())
        self.step = LearnedStep(self.scale, None, self.grid) if learns_step else None
        self.train(calibrated.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizing:
            return super().forward(x)
        if self.step is not None:
            return self.step(x, self.scale, self.zero_point)
        if self.training and self.follows:
            self._follow(x.detach())
        return super().forward(x)

    def take_step(self) -> None:
        """Moves what an optimizer did to the learned step into the scale."""
        if self.step is not None:
            self.step.grow(self.scale)

    def trained(self) -> QuantStub:
        """Returns a plain stub with the range that training arrived at."""
        plain = QuantStub(self.config, self.grid.dtype, self.site).to(self.scale.device)
        plain.scale.copy_(self.scale)
        plain.zero_point.copy_(self.zero_point)
        plain.quantizing = self.quantizing
        return plain.train(self.training)

    def _extremes(self) -> Tensor:
        """Returns the range whose scale and zero point are those of the stub, shape (2,)."""
        grid, zero_point = self.grid, float(self.zero_point)
        low = grid.quant_min
        if grid.symmetric:  # one code more below zero than above is not part of the range
            low = max(low, 2 * zero_point - grid.quant_max)
        ends = torch.tensor([low, grid.quant_max], device=self.scale.device)
        return (ends - zero_point) * self.scale

    def _follow(self, x: Tensor) -> None:
        if x.numel() == 0:
            return
        self.extremes.lerp_(torch.stack(torch.aminmax(x)).float(), AVERAGE_WEIGHT)
        scale, zero_point = scale_and_zero_point(self.extremes[0], self.extremes[1], self.grid)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)


class TrainableWeight(WeightFakeQuantize):
    """Rounds a weight with steps that are learned, starting from those that fit it best."""

    def __init__(self, calibrated: WeightFakeQuantize, weight: Tensor) -> None:
        axis = 0 if calibrated.axis is None else calibrated.axis
        super().__init__(calibrated.config, weight.shape, axis, calibrated.site)
        self.to(weight.device)
        if calibrated.frozen:
            self.scale.copy_(calibrated.scale)
            self.frozen = True
        else:
            self.freeze(weight)
        self.quantizing = calibrated.quantizing
        # Groups are laid out as rows, each with one step.
        in_rows = self.config.group_size is not None
        steps = (self.scale.flatten(), 0) if in_rows else (self.scale, self.axis)
        self.step = LearnedStep(*steps, self.grid)
        self.train(calibrated.training)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.quantizing:
            return weight
        size = self.config.group_size
        if self.axis is None or size is None:
            return self.step(weight, self.scale, self.zero_point)
        groups = in_groups(weight, self.axis, size)
        rounded = self.step(groups, self.scale.flatten(), self.zero_point.flatten())
        return out_of_groups(rounded, self.axis, weight.shape)

    def take_step(self) -> None:
        """Moves what an optimizer did to the learned step into the scale."""
        self.step.grow(self.scale.view(self.step.log_growth.shape))

    def trained(self) -> WeightFakeQuantize:
        """Returns a plain quantizer whose constant scale is the one that training arrived at."""
        axis = 0 if self.axis is None else self.axis
        plain = WeightFakeQuantize(self.config, self.weight_shape, axis, self.site)
        plain = plain.to(self.scale.device)
        plain.scale.copy_(self.scale)
        plain.quantizing, plain.frozen = self.quantizing, True
        return plain.train(self.training)
