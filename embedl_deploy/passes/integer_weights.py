"""The integers that a quantized weight is made of, and the call that runs on them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.quantization.fake_quantize import along
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantization.weights import WeightFakeQuantize


@dataclass(frozen=True)
class IntegerWeights:
    """A fused module, and registered buffers to run it on."""

    module: WeightedFused
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    """One per scale; ``None`` where all are zero."""

    bias: Tensor | None
    axis: int
    grid: QuantGrid
    dtype: torch.dtype
    """Of the weight that the codes stand for."""

    shape: torch.Size
    """Of that weight. Codes in groups are stored as a matrix, one row per output."""

    group_size: int | None = None

    def run(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Runs the module on the weight that the codes stand for."""
        return self.module.run_folded(x, self._weight(), self.bias, residual)

    def _weight(self) -> Tensor:
        if self.group_size is not None:
            return self._from_groups(self.group_size)
        if self.grid.is_float:
            return self.codes.to(self.dtype) * along(self.axis, self.scale, self.codes.dim())
        out_dtype = {} if self.dtype == torch.float32 else {"out_dtype": self.dtype}
        return decomposed().dequantize_per_channel.default(
            self.codes,
            self.scale,
            self.zero_point,
            self.axis,
            self.grid.quant_min,
            self.grid.quant_max,
            self.codes.dtype,
            **out_dtype,
        )

    def _from_groups(self, size: int) -> Tensor:
        ends = (self.grid.quant_min, self.grid.quant_max, self.codes.dtype)
        weight = decomposed().dequantize_per_channel_group.default(
            self.codes, self.scale, None, *ends, size, self.dtype
        )
        return weight if weight.shape == self.shape else weight.reshape(self.shape)


def integer_weights(module: WeightedFused, quantizer: WeightFakeQuantize) -> IntegerWeights:
    """Rounds the folded weight of ``module`` and registers the integers beside its float weight.

    The scale is spelled per channel even where there is one for the whole tensor, and a transposed
    linear layer as a plain one: kernels take nothing else. Groups have no zero points, which are
    zero.
    """
    with torch.no_grad():
        weight, bias = module.folded_weight_and_bias()
        bias = module.quantized_bias(bias)
        codes, scale = quantizer.codes_of(weight)
    owner, axis, size = module.weighted, module.weight_axis, quantizer.config.group_size
    shape = weight.shape
    if isinstance(owner, TransposedLinear):
        codes, axis, shape = codes.t(), 0, shape[::-1]
        _run_as_linear(module, owner)
    # Inductor packs the integers in the order they lie in: those of a transposed view, transposed.
    codes = codes.contiguous()
    if size is not None:
        codes = codes.flatten(1)
    else:
        scale = scale.expand(shape[axis]).contiguous()
    zero_point = None if size else torch.zeros_like(scale, dtype=torch.int64)
    return IntegerWeights(
        module,
        _register(owner, "weight_codes", codes),
        _register(owner, "weight_scale", scale),
        None if zero_point is None else _register(owner, "weight_zero_point", zero_point),
        bias if bias is None or bias is owner.bias else _register(owner, "folded_bias", bias),
        axis,
        quantizer.grid,
        weight.dtype,
        torch.Size(shape),
        size,
    )


def _register(owner: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Registers a buffer under a free name and returns it, or an equal one that is there."""
    tensor = tensor.detach()
    candidate, count = name, 0
    while (known := getattr(owner, candidate, None)) is not None:
        if known.dtype == tensor.dtype and torch.equal(known, tensor):
            return known
        count += 1
        candidate = f"{name}_{count}"
    owner.register_buffer(candidate, tensor)
    return tensor


def _run_as_linear(module: WeightedFused, transposed: TransposedLinear) -> None:
    """Makes ``run_folded`` take a weight of shape (out, in)."""
    plain = nn.Linear(transposed.in_features, transposed.out_features, device="meta")
    # The part of a fused module is a plain attribute, not a registered child.
    object.__setattr__(module, "linear", plain)
