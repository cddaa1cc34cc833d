"""The quantizer of one weight: a child of the fused module that owns the weight."""

import torch
from torch import Tensor, nn

from embedl_deploy.errors import QuantizationError
from embedl_deploy.quantization.config import TensorQuantConfig
from embedl_deploy.quantization.fake_quantize import (
    fake_quantize,
    fake_quantize_per_channel,
    quantize_codes,
)
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.groups import in_groups, out_of_groups
from embedl_deploy.quantization.precision import CalibrationMethod
from embedl_deploy.quantization.scales import symmetric_scale
from embedl_deploy.quantization.weight_range import searched_peaks

_SEARCHED = (CalibrationMethod.MSE, CalibrationMethod.HISTOGRAM)


class WeightFakeQuantize(nn.Module):
    """Rounds a weight to its codes and back.

    Until ``freeze`` the scale is computed from the weight at each forward, so that it follows a
    weight in training; from then on it is a constant of the model. Zeros stay zero either way.
    In groups the scale has the shape (outputs, groups per output).
    """

    config: TensorQuantConfig
    grid: QuantGrid
    axis: int | None
    site: str
    scale: Tensor
    zero_point: Tensor

    # Class attributes until they are set, as in ``QuantStub``.
    quantizing: bool = True
    frozen: bool = False

    def __init__(
        self, config: TensorQuantConfig, shape: torch.Size, axis: int = 0, site: str = ""
    ) -> None:
        super().__init__()
        # Past ``nn.Module``'s own ways, as in ``QuantStub``.
        kept = axis if config.per_channel else None
        self.__dict__.update(config=config, grid=QuantGrid.of(config), axis=kept, site=site)
        channels = () if kept is None else (shape[kept],)
        if kept is not None and config.group_size is not None:
            channels = (*channels, shape.numel() // shape[kept] // config.group_size)
        zero_point = torch.zeros(channels, dtype=torch.int32)
        self._buffers.update(scale=torch.ones(channels), zero_point=zero_point)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight that the codes of ``weight`` stand for."""
        if not self.quantizing:
            return weight
        scale = self.scale if self.frozen else self.scale_of(weight)
        if self.axis is None:
            return fake_quantize(weight, scale, self.zero_point, self.grid)
        size, zero_point = self.config.group_size, self.zero_point
        if size is None:
            return fake_quantize_per_channel(weight, scale, zero_point, self.axis, self.grid)
        groups = in_groups(weight, self.axis, size)
        rounded = fake_quantize_per_channel(
            groups, scale.flatten(), zero_point.flatten(), 0, self.grid
        )
        return out_of_groups(rounded, self.axis, weight.shape)

    @property
    def weight_shape(self) -> torch.Size:
        """A shape of weights that have as many scales as there are here."""
        if self.axis is None:
            return torch.Size([1])
        row = self.scale[0].numel() * (self.config.group_size or 1)
        sizes = [len(self.scale), row] if self.axis == 0 else [row, len(self.scale)]
        return torch.Size(sizes)

    def scale_of(self, weight: Tensor) -> Tensor:
        """Returns the scale that fits ``weight``, of the shape of the ``scale`` buffer."""
        weight, axis, size = weight.detach(), self.axis, self.config.group_size
        if axis is not None and size is not None:
            weight, axis = in_groups(weight, axis, size), 0
        peaks = _peaks(weight, axis)
        if self.config.calibration_method in _SEARCHED:
            peaks = searched_peaks(weight, peaks, axis, self.grid)
        scale = symmetric_scale(peaks, self.grid)
        return scale if size is None else scale.reshape(self.scale.shape)

    def freeze(self, weight: Tensor) -> None:
        """Fixes the scale to the one that fits ``weight``.

        Raises:
            QuantizationError: The weight has NaN or infinite values.
        """
        if not bool(torch.isfinite(weight).all()):
            raise QuantizationError(
                f"{self.site}: the weight has NaN or infinite values, no scale represents it"
            )
        self.scale.copy_(self.scale_of(weight))
        self.frozen = True

    def codes_of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the codes of ``weight`` in the storage dtype, and the scale they go with."""
        scale = self.scale if self.frozen else self.scale_of(weight)
        size, weight, zero_point = self.config.group_size, weight.detach(), self.zero_point
        if self.axis is None or size is None:
            codes = quantize_codes(weight, scale, zero_point, self.axis, self.grid)
        else:
            groups, points = in_groups(weight, self.axis, size), zero_point.flatten()
            codes = quantize_codes(groups, scale.flatten(), points, 0, self.grid)
            codes = out_of_groups(codes, self.axis, weight.shape)
        return codes, scale.detach().clone()

    def extra_repr(self) -> str:
        """Says the format, the channels and whether the scale is fixed."""
        channels = "" if self.axis is None else f", {len(self.scale)} channels, axis={self.axis}"
        return f"{self.config}{channels}{', frozen' if self.frozen else ''}"


def _peaks(weight: Tensor, axis: int | None) -> Tensor:
    magnitudes = (weight if weight.dtype == torch.float32 else weight.float()).abs()
    if axis is None:
        return magnitudes.amax()
    others = [dimension for dimension in range(weight.dim()) if dimension != axis]
    return magnitudes.amax(others) if others else magnitudes
