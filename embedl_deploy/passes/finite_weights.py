"""Refuses weights that no scale represents."""

import math
from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor, nn

from embedl_deploy.errors import QuantizationError
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.quantization.weights import WeightFakeQuantize


def require_finite_weights(model: nn.Module) -> None:
    """Checks every weight that is to be quantized, and the norm that is folded into it.

    Raises:
        QuantizationError: One has NaN or infinite values.
    """
    for layer, quantizer in _quantized(model):
        for part in layer.parts:
            tensors = cast(
                "Iterable[tuple[str, Tensor]]", (*part.named_parameters(), *part.named_buffers())
            )
            for name, tensor in tensors:
                _require_finite(tensor, f"{name} of {type(part).__name__} at {quantizer.site}")


def _quantized(model: nn.Module) -> Iterator[tuple[WeightedFused, WeightFakeQuantize]]:
    for module in model.modules():
        if isinstance(module, WeightedFused):
            quantizer = module.weight_fake_quant
            if isinstance(quantizer, WeightFakeQuantize):
                yield module, quantizer


def _require_finite(tensor: Tensor, where: str) -> None:
    if tensor.is_meta or not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # One pass without a mask as large as the weight; NaN wins over every other value.
    low, high = tensor.detach().aminmax()
    if not (math.isfinite(low) and math.isfinite(high)):
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise QuantizationError(
            f"weights must be finite, {where} has {nan} NaN and {infinite} infinite of "
            f"{tensor.numel()} values: mend the weights, or name the layer in QuantConfig.skip"
        )
