"""Corrects biases so that each quantized layer keeps the mean output it had in float."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.calibration import ForwardLoop, run_forward_loop
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import PassRecord


@dataclass
class RunningMean:
    """The mean of a layer's output per channel over all data seen so far."""

    total: Tensor | None = None
    """Sum over batch and positions, shape (out,), float64."""

    count: int = 0
    """How many values of each channel went into the sum."""

    def add(self, output: Tensor, axis: int) -> None:
        """Takes in an output of the layer, channels along ``axis``."""
        channels = output.detach().movedim(axis, 0).flatten(1).double()
        total = channels.sum(1)
        self.total = total if self.total is None else self.total + total
        self.count += channels.shape[1]

    def value(self) -> Tensor:
        """Returns the mean, shape (out,), float64."""
        assert self.total is not None, "nothing was seen"
        return self.total / self.count


Means = dict[WeightedFused, RunningMean]


@contextmanager
def watching_means(model: nn.Module) -> Iterator[Means]:
    """Collects the mean output of every quantized layer while the model runs in float.

    Wrap calibration in it: then the means cost no pass of their own.
    """
    means: Means = {layer: RunningMean() for layer in _quantized_layers(model)}

    def watch(layer: WeightedFused, args: tuple[Tensor, ...]) -> None:
        weight, bias = layer.folded_weight_and_bias()
        means[layer].add(layer.layer_output(args[0], weight, bias), _channel_axis(layer))

    with _hooked(means, watch):
        yield means


def correct_biases(model: nn.Module, means: Means, forward_loop: ForwardLoop) -> PassRecord:
    """Sets the bias correction of every layer from one pass over data with quantizers on.

        correction = E[W x + b] in float - E[W_q x_q + b] quantized        per output channel

    A layer is corrected before the next one runs, so that each sees inputs whose own shift is
    already corrected, and no shift is counted twice. Exact for a single batch; with several, each
    batch refines the estimate of all.

    Source: Nagel et al. 2019, section 4.2, empirical form, https://arxiv.org/abs/1906.04721
    """
    quantized: Means = {layer: RunningMean() for layer in means}

    def correct(layer: WeightedFused, args: tuple[Tensor, ...]) -> None:
        seen = means[layer]
        if seen.total is None:
            return
        assert isinstance(layer.weight_fake_quant, WeightFakeQuantize)
        weight, bias = layer.folded_weight_and_bias()
        output = layer.layer_output(args[0], layer.weight_fake_quant(weight), bias)
        quantized[layer].add(output, _channel_axis(layer))
        shift = seen.value() - quantized[layer].value()
        layer.bias_correction = shift.to(weight.dtype)

    with _hooked(means, correct), torch.no_grad():
        run_forward_loop(model, forward_loop)
    corrected = sum(layer.bias_correction is not None for layer in means)
    return PassRecord("bias correction", notes=(f"{corrected} layers corrected",))


def _quantized_layers(model: nn.Module) -> list[WeightedFused]:
    return [
        module
        for module in model.modules()
        if isinstance(module, WeightedFused)
        and isinstance(module.weight_fake_quant, WeightFakeQuantize)
    ]


def _channel_axis(layer: WeightedFused) -> int:
    """Returns which axis of the layer's output counts channels: the last, or that before space."""
    weight, _ = layer.folded_weight_and_bias()
    return 1 - weight.dim() if weight.dim() > 2 else -1


@contextmanager
def _hooked(
    means: Means, hook: Callable[[WeightedFused, tuple[Tensor, ...]], None]
) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(hook) for layer in means]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
