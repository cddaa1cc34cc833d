"""Rounds the weights of a calibrated graph by what that does to the outputs of their layers."""

import copy
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from embedl_deploy.errors import CalibrationError
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.bias_correction import correct_biases, forget_inputs, watching_inputs
from embedl_deploy.passes.calibration import ForwardLoop, counting, run_forward_loop
from embedl_deploy.passes.in_float import in_eval_mode, in_float
from embedl_deploy.passes.layer_inputs import (
    InputMoments,
    as_weight,
    input_columns,
    unsupported,
    weight_rows,
)
from embedl_deploy.passes.processes import exchanging, process_count
from embedl_deploy.quantization.adaptive_rounding import adaptive_codes
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.groups import scale_of_each
from embedl_deploy.quantization.precision import WeightRounding
from embedl_deploy.quantization.rounded_weight import RoundedWeight
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weight_rounding import compensated_codes, output_error
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import PassRecord

T = TypeVar("T")

Choice: TypeAlias = Callable[[Tensor, Tensor, QuantGrid, Tensor], Tensor]
"""Codes of weights, from the weights, their scales, the codes there are, and the moments."""

_CHOICES: Mapping[WeightRounding, Choice] = MappingProxyType(
    {WeightRounding.GPTQ: compensated_codes, WeightRounding.ADAROUND: adaptive_codes}
)

_MOST_BYTES = 2**30
"""Of moments kept at a time; layers beyond it wait for another pass over the data."""


def round_weights(
    model: nn.Module,
    forward_loop: ForwardLoop,
    *,
    corrects_biases: bool = True,
    rounding: WeightRounding = WeightRounding.GPTQ,
) -> tuple[PassRecord, ...]:
    """Chooses the codes of every quantized weight together, with its scale as it is.

    Layers are looked at with rounded inputs and float weights. Where biases are corrected, what
    rounding does to the mean of an output does not count. The processes of a
    ``torch.distributed`` group, each with its share of the data, choose the same codes. On an
    error the model is left as it was.

    Args:
        model: What ``calibrate`` returned; changed in place.
        forward_loop: Gone through once for every GiB of moments, in² values per layer, and once
            more for the biases; an iterator is made a list first.
        corrects_biases: Whether the bias corrections are computed for the new codes.
        rounding: How the codes are chosen.

    Raises:
        CalibrationError: The loop never ran the model, or not each time.
        ValueError: ``rounding`` is ``NEAREST``, which chooses nothing.
    """
    began, choose = time.perf_counter(), _choice(rounding)
    if isinstance(forward_loop, Iterator):
        forward_loop = list(cast("Iterator[object]", forward_loop))
    data = _Data(model, forward_loop)
    layers, notes = _roundable(model)
    with _undone_on_error(model):
        ratios: list[float] = []
        for some in _in_turn(layers):
            for layer, moment in zip(some, _moments_of(some, data), strict=True):
                gram = moment.gram(centred=corrects_biases)
                if gram is not None:
                    ratios.append(_round(layer, gram, choose))
        if ratios:
            left = f"{sum(ratios) / len(ratios):.0%} of the squared error of the nearest codes left"
            notes = [f"{len(ratios)} weights rounded, {left} on average", *notes]
        seconds = time.perf_counter() - began
        record = PassRecord("weight rounding", seconds=seconds, notes=tuple(notes))
        return (record, _correct_biases(data)) if corrects_biases else (record,)


@dataclass
class _Data:
    """A model and its data, gone through several times."""

    model: nn.Module
    forward_loop: ForwardLoop
    passes: int = 0

    def seen_by(self, make: Callable[[], T]) -> list[T]:
        """Goes through the data; returns what ``make`` then gives in each process.

        Raises:
            CalibrationError: The model ran in no process.
        """
        self.passes += 1
        with (
            counting(self.model) as count,
            exchanging(lambda: (count.passes, make())) as seen,
            _with_float_weights(self.model),
        ):
            run_forward_loop(self.model, self.forward_loop)
        if any(runs for runs, _ in seen):
            return [value for _, value in seen]
        if self.passes == 1:
            raise CalibrationError(
                "forward_loop never ran the model it was given: call the model on calibration "
                "inputs, rounding saw no data"
            )
        raise CalibrationError(
            f"rounding goes through the data several times, and forward_loop never ran the model "
            f"in pass {self.passes}: pass a collection, or a function that opens its data anew"
        )


@contextmanager
def _undone_on_error(model: nn.Module) -> Generator[None]:
    """Gives the layers back their quantizers and corrections where the body raises."""
    layers = [module for module in model.modules() if isinstance(module, WeightedFused)]
    before = [(layer, layer.weight_fake_quant, layer.bias_correction) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, quantizer, correction in before:
            layer.weight_fake_quant, layer.bias_correction = quantizer, correction
        raise


def _correct_biases(data: _Data) -> PassRecord:
    """Computes the corrections anew from one pass over the data."""
    with watching_inputs(data.model) as means:
        try:
            seen = data.seen_by(lambda: [mean.state_if_any() for mean in means.values()])
            if len(seen) > 1:
                for mean, states in zip(means.values(), zip(*seen, strict=True), strict=True):
                    mean.load_merged([state for state in states if state is not None])
            return correct_biases(means)
        finally:
            forget_inputs(means)


def _choice(rounding: WeightRounding) -> Choice:
    if rounding not in _CHOICES:
        raise ValueError(
            f"rounding must be one of {', '.join(one.name for one in _CHOICES)}, got "
            f"{rounding.name}: calibrated weights are at their nearest codes already"
        )
    return _CHOICES[rounding]


def _roundable(model: nn.Module) -> tuple[list[WeightedFused], list[str]]:
    layers: list[WeightedFused] = []
    notes: list[str] = []
    for module in model.modules():
        if not isinstance(module, WeightedFused):
            continue
        quantizer = module.weight_fake_quant
        if not isinstance(quantizer, WeightFakeQuantize):
            continue
        reason = unsupported(module)
        if quantizer.grid.is_float:
            reason = "the steps between float8 codes are not even"
        if reason is None:
            layers.append(module)
        else:
            notes.append(f"{quantizer.site}: nearest codes, {reason}")
    return layers, notes


def _in_turn(layers: list[WeightedFused]) -> Iterator[list[WeightedFused]]:
    """Yields the layers in lists whose moments fit into memory together."""
    some: list[WeightedFused] = []
    size = 0
    for layer in layers:
        rows = weight_rows(layer, layer.folded_weight_and_bias()[0])
        needed = 8 * rows.shape[0] * rows.shape[2] ** 2
        if some and size + needed > _MOST_BYTES:
            yield some
            some, size = [], 0
        some.append(layer)
        size += needed
    if some:
        yield some


def _moments_of(layers: list[WeightedFused], data: _Data) -> list[InputMoments]:
    own = [InputMoments() for _ in layers]
    with ExitStack() as stack:
        for layer, moments in zip(layers, own, strict=True):
            stack.callback(layer.register_forward_pre_hook(_adding_to(moments)).remove)
        is_alone = process_count() == 1
        seen = data.seen_by(lambda: own if is_alone else [one.on_cpu() for one in own])
    if is_alone:
        return own
    merged = [InputMoments() for _ in layers]
    for one in seen:
        for moments, others in zip(merged, one, strict=True):
            moments.merge(others)
    return merged


def _adding_to(moments: InputMoments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, WeightedFused)
        moments.add(input_columns(module, args[0]))

    return add


def _round(layer: WeightedFused, gram: Tensor, choose: Choice) -> float:
    """Gives ``layer`` its codes; returns the share of the nearest ones' squared error left."""
    nearest = layer.weight_fake_quant
    assert isinstance(nearest, WeightFakeQuantize)
    if isinstance(nearest, RoundedWeight):
        nearest = nearest.plain()
    nearest = copy.deepcopy(nearest)  # the layer's own stays as it is, in case this is undone
    with torch.no_grad():
        weight = layer.folded_weight_and_bias()[0].detach()
        if not nearest.frozen:
            nearest.freeze(weight)
        rows = weight_rows(layer, weight)
        gram = gram.to(weight.device)  # on the CPU where processes merged theirs
        scale = _row_scales(layer, nearest, weight)
        codes = choose(rows, scale, nearest.grid, gram)
        before = weight_rows(layer, nearest.codes_of(weight)[0])
        lost = [float(output_error(rows, scale, one, gram).sum()) for one in (codes, before)]
        quantizer = RoundedWeight(nearest, weight, as_weight(layer, codes, weight.shape))
    layer.weight_fake_quant = quantizer
    layer.bias_correction = None  # it belongs to the codes of before
    return lost[0] / lost[1] if lost[1] > 0 else 1.0


def _row_scales(layer: WeightedFused, quantizer: WeightFakeQuantize, weight: Tensor) -> Tensor:
    """Returns the scales of ``weight_rows``: one per row, or one per value where it has groups."""
    scale, size = quantizer.scale, quantizer.config.group_size
    if size is not None:
        return weight_rows(layer, scale_of_each(scale, layer.weight_axis, weight.shape, size))
    count = weight.shape[layer.weight_axis]
    groups = weight_rows(layer, weight).shape[0]
    return scale.expand(count).reshape(groups, -1, 1)


@contextmanager
def _with_float_weights(model: nn.Module) -> Generator[None]:
    """Runs a model in eval mode, activations rounded, with its weights and biases as in float."""
    with in_eval_mode(model), in_float(model) as saved:
        for quantizer, is_quantizing in saved.quantizing.items():
            if isinstance(quantizer, QuantStub):
                quantizer.quantizing = is_quantizing
        yield
