"""Runs a model on data and sets the scale of each quantizer from what it saw."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import nn
from torch.fx import Graph

from embedl_deploy.errors import CalibrationError
from embedl_deploy.graph.nodes import value_of
from embedl_deploy.graph.values import value_text
from embedl_deploy.passes.bias_correction import (
    correct_biases,
    forget_inputs,
    known_means,
    watching_inputs,
)
from embedl_deploy.passes.calibration_notes import Count, calibration_notes, samples_in
from embedl_deploy.passes.calibration_state import (
    calibration_state,
    merge_states,
    refuse_moving_averages,
)
from embedl_deploy.passes.finite_weights import require_finite_weights
from embedl_deploy.passes.in_float import in_eval_mode, in_float
from embedl_deploy.passes.processes import exchanging, process_count
from embedl_deploy.quantization.stub import QuantStub, static_stubs_of, stubs_of
from embedl_deploy.rewriting import PassRecord

ForwardLoop: TypeAlias = Callable[[nn.Module], object] | Iterable[object]
"""Runs the model on data itself, or yields inputs: a tensor, a tuple or a dict each."""

Progress: TypeAlias = Callable[[int], object]
"""Told the number of forward passes after each one."""


def calibrate_model(
    model: nn.Module,
    forward_loop: ForwardLoop | None,
    *,
    corrects_biases: bool = True,
    progress: Progress | None = None,
) -> tuple[PassRecord, ...]:
    """Sets activation scales and bias corrections from one pass over the data.

    The model runs in eval mode, without gradients and unrounded: what is seen does not depend
    on scales that are not there yet. If the loop is interrupted the statistics stay in the model,
    and the next call goes on from them; ``calibration_state`` saves them. The processes of a
    ``torch.distributed`` group, each with its share of the data, get the same scales, those that
    one process would get from all of it.

    Args:
        model: A model with ``QuantStub`` modules; changed in place.
        forward_loop: Runs the model, or the inputs to run it on. ``None`` is fine for a model
            without stubs.
        corrects_biases: Whether biases make up for what rounding the weights does to the mean.
        progress: Told after each forward pass.

    Raises:
        CalibrationError: No data, a loop that never ran the model, a tensor that was never seen,
            NaN or infinity in an activation.
        QuantizationError: NaN or infinity in a weight.
    """
    began = time.perf_counter()
    if forward_loop is None:
        _require_no_stubs([stub for _, stub in static_stubs_of(model)])
        require_finite_weights(model)
        return (PassRecord("calibration", notes=("no data, and no activation needs any",)),)
    seen = observe_model(model, forward_loop, progress)
    return finish_calibration(model, seen, began, corrects_biases=corrects_biases)


@dataclass(frozen=True)
class Seen:
    """How much data the statistics in a model come from."""

    total: Count
    processes: int


def observe_model(
    model: nn.Module, forward_loop: ForwardLoop, progress: Progress | None = None
) -> Seen:
    """Runs the model on data and leaves in it what its quantizers and layers saw, merged.

    Raises:
        CalibrationError: As ``calibrate_model``, but for tensors that were never seen.
        QuantizationError: As ``calibrate_model``.
    """
    require_finite_weights(model)
    stubs = [stub for _, stub in stubs_of(model)]
    with (
        in_eval_mode(model),
        in_float(model),
        _observing(stubs),
        watching_inputs(model),
        counting(model, progress) as count,
        exchanging(lambda: (count, calibration_state(model))) as seen,
    ):
        if process_count() > 1:
            refuse_moving_averages(model)
        run_forward_loop(model, forward_loop)
    if len(seen) > 1:
        merge_states(model, [state for _, state in seen])
    total = Count(sum(one.passes for one, _ in seen), sum(one.samples for one, _ in seen))
    if total.passes == 0:
        raise CalibrationError(
            "forward_loop never ran the model it was given: call the model on calibration inputs, "
            f"{len(stubs)} activations saw no data"
        )
    return Seen(total, len(seen))


def finish_calibration(
    model: nn.Module, seen: Seen, began: float, *, corrects_biases: bool = True
) -> tuple[PassRecord, ...]:
    """Sets scales and bias corrections from the statistics in a model, and drops these.

    Args:
        model: As ``observe_model`` left it.
        seen: What that returned.
        began: When calibration began, on the clock of ``time.perf_counter``.
        corrects_biases: As in ``calibrate_model``.

    Raises:
        CalibrationError: A quantizer saw nothing.
    """
    stubs = [stub for _, stub in stubs_of(model)]
    static = [stub for _, stub in static_stubs_of(model)]
    notes = tuple(calibration_notes(model, static, seen.total, seen.processes))
    for stub in stubs:
        stub.finish_observing()
    record = PassRecord("calibration", seconds=time.perf_counter() - began, notes=notes)
    means = known_means(model)
    corrections = (correct_biases(means),) if corrects_biases else ()
    forget_inputs(means)
    return (record, *corrections)


def _require_no_stubs(stubs: list[QuantStub]) -> None:
    if stubs:
        raise CalibrationError(
            f"{len(stubs)} activations need data for their scales, got forward_loop=None: pass a "
            "callable that runs the model, or an iterable of inputs"
        )


@contextmanager
def counting(model: nn.Module, progress: Progress | None = None) -> Generator[Count]:
    """Counts forward passes and samples, and tells ``progress`` of each pass."""
    count = Count()

    def after_forward(
        module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], output: object
    ) -> None:
        del module, output
        count.passes += 1
        count.samples += samples_in((*args, *kwargs.values()))
        if progress is not None:
            progress(count.passes)

    handle = model.register_forward_hook(after_forward, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


@contextmanager
def _observing(stubs: list[QuantStub]) -> Generator[None]:
    for stub in stubs:
        stub.start_observing()
    try:
        yield
    finally:
        for stub in stubs:
            stub.observing = False


def run_forward_loop(model: nn.Module, forward_loop: ForwardLoop) -> None:
    """Runs ``model`` on the data that ``forward_loop`` holds or yields, without gradients.

    Raises:
        CalibrationError: The model does not run on something that was yielded.
    """
    with torch.no_grad():
        if not isinstance(forward_loop, Iterable):
            forward_loop(model)
            return
        for batch, inputs in enumerate(cast("Iterable[object]", forward_loop)):
            run_batch(model, batch, *_arguments(model, inputs))


def run_batch(
    model: nn.Module, batch: int, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> None:
    """Calls ``model`` once.

    Raises:
        CalibrationError: It does not run on these inputs; the message names the batch.
    """
    try:
        model(*args, **kwargs)
    except (
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        graph = getattr(model, "graph", None)
        nodes = graph.nodes if isinstance(graph, Graph) else ()
        values = tuple(value_of(node) for node in nodes if node.op == "placeholder")
        expected = f"; it was traced with {value_text(values)}" if values else ""
        given = value_text((*args, *kwargs.values()))
        raise CalibrationError(
            f"the model does not run on batch {batch} of the calibration data, {given}{expected}. "
            f"{type(error).__name__}: {error}"
        ) from error


def _arguments(model: nn.Module, inputs: object) -> tuple[tuple[object, ...], Mapping[str, object]]:
    """Returns one item of a data set as arguments, leaving out what the model does not take."""
    names = _input_names(model)
    if isinstance(inputs, Mapping):
        named = cast("Mapping[str, object]", inputs)
        return (), {name: named[name] for name in named if names is None or name in names}
    if isinstance(inputs, (list, tuple)):
        items = tuple(cast("Iterable[object]", inputs))
        return items if names is None else items[: len(names)], {}
    return (inputs,), {}


def _input_names(model: nn.Module) -> tuple[str, ...] | None:
    """Returns the names of the arguments a traced model takes, ``None`` where it does not tell."""
    graph = getattr(model, "graph", None)
    information = getattr(getattr(graph, "_codegen", None), "pytree_info", None)
    names = cast("list[str] | None", getattr(information, "orig_args", None))
    return None if names is None else tuple(name for name in names if name != "self")
