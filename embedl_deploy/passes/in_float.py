"""Runs a quantized model as it was in float, for as long as a ``with`` block lasts."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize


@dataclass(frozen=True)
class Saved:
    """How a model rounds while it runs in float."""

    quantizing: dict[nn.Module, bool]
    """By quantizer."""

    corrections: dict[WeightedFused, Tensor | None]
    """Bias corrections by layer."""


@contextmanager
def in_float(model: nn.Module) -> Generator[Saved]:
    """Runs a quantized model as it was in float, bias corrections left out as well."""
    layers = [module for module in model.modules() if isinstance(module, WeightedFused)]
    saved = Saved(
        {quantizer: quantizer.quantizing for quantizer in quantizers_in(model)},
        {layer: layer.bias_correction for layer in layers},
    )
    for quantizer in quantizers_in(model):
        quantizer.quantizing = False
    for layer in layers:
        layer.bias_correction = None
    try:
        yield saved
    finally:
        for quantizer in quantizers_in(model):
            quantizer.quantizing = saved.quantizing[quantizer]
        for layer, correction in saved.corrections.items():
            layer.bias_correction = correction


def quantizers_in(model: nn.Module) -> list[QuantStub | WeightFakeQuantize]:
    """Returns every quantizer of a model once, in registration order."""
    kinds = (QuantStub, WeightFakeQuantize)
    return [module for module in model.modules() if isinstance(module, kinds)]
