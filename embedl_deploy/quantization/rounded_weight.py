"""A weight quantizer whose codes were chosen together, not each by itself."""

import torch
from torch import Tensor

from embedl_deploy.quantization.fake_quantize import along
from embedl_deploy.quantization.groups import scale_of_each
from embedl_deploy.quantization.weights import WeightFakeQuantize


class RoundedWeight(WeightFakeQuantize):
    """Rounds to the nearest code plus an offset per value; the scale is a constant.

    The float weight stays what it was, so that what rounding costs can still be measured.
    """

    code_offset: Tensor

    def __init__(self, nearest: WeightFakeQuantize, weight: Tensor, codes: Tensor) -> None:
        """Takes the frozen ``nearest``, the weight, and the codes to reach, int8, its shape."""
        super().__init__(nearest.config, weight.shape, nearest.axis or 0, nearest.site)
        self.to(weight.device)
        self.scale.copy_(nearest.scale)
        self.quantizing, self.frozen = nearest.quantizing, True
        # Clamping comes after the offset, so that it counts from the unclamped code.
        offset = codes - self._nearest_codes(weight.detach().float())
        self.register_buffer("code_offset", offset.to(torch.int16))
        self.train(nearest.training)

    def forward(self, weight: Tensor) -> Tensor:
        if not self.quantizing:
            return weight
        rounded = super().forward(self._moved(weight))
        return rounded if rounded.dtype == weight.dtype else rounded.to(weight.dtype)

    def codes_of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return super().codes_of(self._moved(weight))

    def freeze(self, weight: Tensor) -> None:
        """Does nothing: the codes go with the scale that is there."""

    def plain(self) -> WeightFakeQuantize:
        """Returns a quantizer that rounds to the nearest code, with a scale that follows."""
        shape = self.code_offset.shape
        return WeightFakeQuantize(self.config, shape, self.axis or 0, self.site).to(
            self.scale.device
        )

    def _moved(self, weight: Tensor) -> Tensor:
        """Returns float32 values in the middle of what rounds to the codes, as other dtypes miss.

        The gradient is that of the identity.
        """
        wide = weight if weight.dtype == torch.float32 else weight.float()
        codes = self._nearest_codes(wide.detach()) + self.code_offset
        return wide + (codes * self._broadcast(weight.shape) - wide.detach())

    def _nearest_codes(self, weight: Tensor) -> Tensor:
        return torch.round(weight * (1.0 / self._broadcast(weight.shape)))

    def _broadcast(self, shape: torch.Size) -> Tensor:
        if self.axis is None:
            return self.scale
        if self.config.group_size is not None:
            return scale_of_each(self.scale, self.axis, shape, self.config.group_size)
        return along(self.axis, self.scale, len(shape))

    def extra_repr(self) -> str:
        moved = float((self.code_offset != 0).float().mean())
        return f"{super().extra_repr()}, {moved:.0%} of the codes not the nearest"
