"""The two ops that engines and exporters know as quantization."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.stub import QuantStub


class QuantizeDequantize(nn.Module):
    """Rounds a tensor to integers and back, with the scale as a literal of the graph."""

    def __init__(self, scale: float, zero_point: int, grid: QuantGrid) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point
        self.grid = grid

    @classmethod
    def of(cls, stub: QuantStub) -> "QuantizeDequantize":
        """Returns what a calibrated stub becomes."""
        return cls(float(stub.scale), int(stub.zero_point), stub.grid)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the values that the codes of ``x`` stand for, in the dtype of ``x``."""
        if self.grid.is_float:
            return self._through_float8(x)
        grid, ops = self.grid, decomposed()
        ends = (grid.quant_min, grid.quant_max, grid.dtype)
        codes = ops.quantize_per_tensor.default(x, self.scale, self.zero_point, *ends)
        out_dtype = {} if x.dtype == torch.float32 else {"out_dtype": x.dtype}
        return ops.dequantize_per_tensor.default(
            codes, self.scale, self.zero_point, *ends, **out_dtype
        )

    def _through_float8(self, x: Tensor) -> Tensor:
        # The decomposed ops round to integers first: float8 is spelled with casts.
        scaled = (x * (1.0 / self.scale)).clamp(self.grid.quant_min, self.grid.quant_max)
        return scaled.to(self.grid.dtype).to(x.dtype) * self.scale

    def extra_repr(self) -> str:
        """Says the scale and the codes."""
        return f"scale={self.scale:.4g}, zero_point={self.zero_point}, {self.grid}"


class _Op(Protocol):
    def default(self, *args: object, **kwargs: object) -> Tensor: ...
    def tensor(self, *args: object, **kwargs: object) -> Tensor: ...


class DecomposedOps(Protocol):
    """The ops of torch's ``quantized_decomposed`` namespace that engines know."""

    quantize_per_tensor: _Op
    dequantize_per_tensor: _Op
    quantize_per_channel: _Op
    dequantize_per_channel: _Op
    dequantize_per_channel_group: _Op
    quantize_per_token: _Op
    dequantize_per_token: _Op


def decomposed() -> DecomposedOps:
    """Returns torch's ``quantized_decomposed`` ops, which exist once their module is imported."""
    import torch.ao.quantization.fx._decomposed  # pyright: ignore[reportUnusedImport]  # registers

    return cast("DecomposedOps", torch.ops.quantized_decomposed)
