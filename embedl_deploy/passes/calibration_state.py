"""What calibration has seen so far, as tensors that can be saved, loaded and merged."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from embedl_deploy.errors import CalibrationError
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.bias_correction import InputMean, input_mean_of
from embedl_deploy.quantization.observers import make_observer
from embedl_deploy.quantization.precision import CalibrationMethod
from embedl_deploy.quantization.stub import static_stubs_of

State = dict[str, Tensor]
"""Tensors by the name of the module they belong to, a point, and the name of the statistic."""

_MEAN = "input_mean"


def calibration_state(model: nn.Module) -> State:
    """Returns what an interrupted calibration has seen, small whatever the amount of data.

    Empty where nothing was seen, or where calibration is complete.
    """
    state: State = {}
    for name, stub in static_stubs_of(model):
        if stub.observer is not None:
            state |= {f"{name}.{key}": value for key, value in stub.observer.state().items()}
    for name, layer in _layers(model):
        mean = layer.__dict__.get(_MEAN)
        if isinstance(mean, InputMean) and mean.total is not None:
            state |= {f"{name}.{_MEAN}.{key}": value for key, value in mean.state().items()}
    return state


def load_calibration_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Lets the next calibration of ``model`` go on from what another one has seen.

    Args:
        model: What ``insert_qdq`` returned, from the same model and configuration.
        state: From ``calibration_state``.

    Raises:
        CalibrationError: The model has no quantizer of such a name, or one without a state.
    """
    known = dict(state)
    stubs = static_stubs_of(model)
    missing = [name for name, _ in stubs if f"{name}.batches" not in known]
    if missing and known:
        raise CalibrationError(
            f"the state lacks {len(missing)} of {len(stubs)} quantizers, the first {missing[0]!r}: "
            "load it into the same model with the same configuration"
        )
    for name, stub in stubs if known else ():
        stub.observer = make_observer(stub.config, stub.grid)
        stub.observer.load_state(_taken(known, f"{name}."))
    for name, layer in _layers(model):
        found = _taken(known, f"{name}.{_MEAN}.")
        if found:
            input_mean_of(layer).load_state(found)
    if known:
        raise CalibrationError(
            f"the state holds {next(iter(known))!r}, which this model has no place for: load it "
            "into the same model with the same configuration"
        )


def merge_states(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
    """Gives ``model`` the statistics of several processes, in place of its own.

    Exact: ranges and counts are those of one process that saw all of the data.

    Raises:
        CalibrationError: A statistic depends on the order of the batches.
    """
    refuse_moving_averages(model)
    for name, stub in static_stubs_of(model):
        total = stub.observer = make_observer(stub.config, stub.grid)
        for state in states:
            own = _taken(dict(state), f"{name}.")
            if own:
                total.merge(own)
    for name, layer in _layers(model):
        found = [_taken(dict(state), f"{name}.{_MEAN}.") for state in states]
        if any(found):
            input_mean_of(layer).load_merged([item for item in found if item])


def refuse_moving_averages(model: nn.Module) -> None:
    """Raises where several processes could not agree on a range.

    Raises:
        CalibrationError: A quantizer averages over batches.
    """
    for _, stub in static_stubs_of(model):
        if stub.config.calibration_method is CalibrationMethod.MOVING_AVERAGE_MINMAX:
            raise CalibrationError(
                f"{stub.site}: a moving average depends on the order of the batches, which several "
                "processes do not have: use MINMAX, HISTOGRAM, PERCENTILE, ENTROPY or MSE"
            )


def _taken(state: State, prefix: str) -> State:
    """Removes and returns what belongs to one module, unless to a module inside of it."""
    own = [key for key in state if key.startswith(prefix) and "." not in key[len(prefix) :]]
    return {key[len(prefix) :]: state.pop(key) for key in own}


def _layers(model: nn.Module) -> Iterator[tuple[str, WeightedFused]]:
    named = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    return ((name, module) for name, module in named if isinstance(module, WeightedFused))
