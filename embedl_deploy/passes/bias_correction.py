"""Corrects biases for what rounding a weight does to the mean output of its layer."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import PassRecord


@dataclass
class InputMean:
    """The mean input of one layer per channel, over all data seen so far."""

    total: Tensor | None = None
    """Sum over batch and positions, shape (in,), float64."""

    count: int = 0
    """How many values of each channel went into the sum."""

    positions: tuple[int, ...] = ()
    """Height and width of the last image; () for rows."""

    def add(self, x: Tensor, channel_axis: int) -> None:
        """Takes in one input of the layer."""
        x = x.detach()
        others = [axis for axis in range(x.dim()) if axis != channel_axis % x.dim()]
        total = x.sum(others, dtype=torch.float64) if others else x.double()
        # What was loaded is on the CPU until then.
        self.total = total if self.total is None else self.total.to(total.device) + total
        self.count += x.numel() // max(1, len(total))
        self.positions = () if channel_axis == -1 else tuple(x.shape[channel_axis + 1 :])

    def divided_by(self, factors: Tensor) -> "InputMean":
        """Returns the mean of an input whose channels are divided by ``factors``, shape (in,)."""
        total = self.total
        if total is not None:
            total = total.to(factors.device) / factors.double()
        return InputMean(total, self.count, self.positions)

    def state(self) -> dict[str, Tensor]:
        """Returns all that was seen, as tensors on the CPU that ``load_state`` takes."""
        assert self.total is not None, "nothing was seen"
        positions = torch.tensor(self.positions, dtype=torch.int64)
        return {
            "total": self.total.cpu(),
            "count": torch.tensor(self.count),
            "positions": positions,
        }

    def state_if_any(self) -> dict[str, Tensor] | None:
        """Returns the state, ``None`` where nothing was seen."""
        return None if self.total is None else self.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what another mean saw."""
        self.load_merged([state])

    def load_merged(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Goes on from what several others saw, one after the other."""
        self.total, self.count = None, 0
        for state in states:
            total = state["total"].cpu()
            self.total = total.clone() if self.total is None else self.total + total
            self.count += int(state["count"])
            self.positions = tuple(int(size) for size in state["positions"])

    def as_input(self, weight: Tensor) -> Tensor:
        """Returns an input of the layer that has the mean everywhere, batch 1, to go with it."""
        assert self.total is not None, "nothing was seen"
        mean = (self.total / self.count).to(weight)
        ones = (1,) * len(self.positions)
        return mean.reshape(1, -1, *ones).expand(1, -1, *self.positions)


Means = dict[WeightedFused, InputMean]


@contextmanager
def watching_inputs(model: nn.Module) -> Generator[Means]:
    """Collects the mean input of every quantized layer while the model runs.

    Wrap calibration in it: then the means cost no forward pass of their own. They stay with the
    layers until ``forget_inputs``, so that an interrupted calibration can go on.
    """
    means: Means = {}
    handles: list[RemovableHandle] = []
    for layer in _quantized_layers(model):
        watched = _watched(layer)
        if watched is not None:
            mean = means[layer] = input_mean_of(layer)
            hook = _adding_to(mean, _channel_axis(layer))
            handles.append(watched.register_forward_pre_hook(hook))
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()


def input_mean_of(layer: WeightedFused) -> InputMean:
    """Returns what was seen of the input of ``layer``; a new mean where nothing was."""
    mean = layer.__dict__.setdefault("input_mean", InputMean())
    assert isinstance(mean, InputMean)
    return mean


def known_means(model: nn.Module) -> Means:
    """Returns what the quantized layers of ``model`` have seen so far."""
    means: Means = {}
    for layer in _quantized_layers(model):
        mean = layer.__dict__.get("input_mean")
        if isinstance(mean, InputMean):
            means[layer] = mean
    return means


def forget_inputs(means: Means) -> None:
    """Drops what was seen: the next calibration starts anew."""
    for layer in means:
        layer.__dict__.pop("input_mean", None)


def correct_biases(means: Means) -> PassRecord:
    """Sets the bias correction of every layer whose mean input is known.

        correction = (W - W_q) E[x]                                per output channel

    With it the layer's mean output is what it was in float, however its weight is rounded.
    Exact for a linear layer; for a padded convolution up to how the mean varies over the image.
    The rounding of activations is left out: its mean is close to zero where little is clipped.

    Source: Nagel et al. 2019, section 4.2, https://arxiv.org/abs/1906.04721
    """
    corrected = 0
    with torch.no_grad():
        for layer, mean in means.items():
            if mean.total is not None:
                layer.bias_correction = _correction(layer, mean)
                corrected += 1
    return PassRecord("bias correction", notes=(f"{corrected} biases corrected",))


def _correction(layer: WeightedFused, mean: InputMean) -> Tensor:
    quantizer = layer.weight_fake_quant
    assert isinstance(quantizer, WeightFakeQuantize)
    weight, _ = layer.folded_weight_and_bias()
    x = mean.as_input(weight)
    lost = weight - quantizer(weight)
    # The mean of a normalised input was taken after the norm, which is not to run again.
    alone = FusedLinear(layer.linear) if isinstance(layer, FusedNormLinear) else layer
    output = alone.layer_output(x, lost, None)
    return output.flatten(2).mean(2).flatten() if output.dim() > 2 else output.flatten()


def _quantized_layers(model: nn.Module) -> list[WeightedFused]:
    return [
        module
        for module in model.modules()
        if isinstance(module, WeightedFused)
        and isinstance(module.weight_fake_quant, WeightFakeQuantize)
    ]


def _watched(layer: WeightedFused) -> nn.Module | None:
    """Returns the module whose input is what the weight multiplies, None if there is none."""
    if not isinstance(layer, FusedNormLinear):
        return layer
    stub = layer.linear_input_stub
    return stub if isinstance(stub, nn.Module) else None


def _channel_axis(layer: WeightedFused) -> int:
    """Returns the axis of the layer's input that counts channels: the last, or before space."""
    weight, _ = layer.folded_weight_and_bias()
    return -1 if weight.dim() == 2 else 1 - weight.dim()


def _adding_to(
    mean: InputMean, channel_axis: int
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        del module
        mean.add(args[0], channel_axis)

    return add
