"""Runs a quantized model as it was in float, or in eval mode, while a ``with`` block lasts."""

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
    quantizers = quantizers_in(model)
    layers = [module for module in model.modules() if isinstance(module, WeightedFused)]
    saved = Saved(
        {quantizer: quantizer.quantizing for quantizer in quantizers},
        {layer: layer.bias_correction for layer in layers},
    )
    for quantizer in quantizers:
        quantizer.quantizing = False
    for layer in layers:
        layer.bias_correction = None
    try:
        yield saved
    finally:
        for quantizer in quantizers:
            quantizer.quantizing = saved.quantizing[quantizer]
        for layer, correction in saved.corrections.items():
            layer.bias_correction = correction


@contextmanager
def in_eval_mode(model: nn.Module) -> Generator[None]:
    """Runs a model in eval mode, and gives each of its modules its own mode back."""
    was_training = [module for module in model.modules() if module.training]
    for module in was_training:
        module.training = False
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def quantizers_in(model: nn.Module) -> list[QuantStub | WeightFakeQuantize]:
    """Returns every quantizer of a model once, in registration order."""
    kinds = (QuantStub, WeightFakeQuantize)
    return [module for module in model.modules() if isinstance(module, kinds)]
