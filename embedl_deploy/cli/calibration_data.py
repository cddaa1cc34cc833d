"""Inputs to calibrate on: the user's, or random ones that look like the example."""

import itertools
from collections.abc import Callable, Iterable
from typing import cast

from torch import Tensor, nn

from embedl_deploy.cli.model_sources import Inputs, LoadedModel, import_object
from embedl_deploy.errors import ModelSourceError
from embedl_deploy.passes.calibration import run_batch


def calibration_inputs(loaded: LoadedModel, data: str | None, samples: int) -> list[Inputs]:
    """Returns at most ``samples`` inputs as (args, kwargs) pairs.

    Args:
        loaded: The model; random inputs take the shapes of its example inputs.
        data: ``module:function`` that returns an iterable of inputs; None for random ones.
        samples: How many inputs to take at most.

    Raises:
        ModelSourceError: ``data`` names nothing that yields inputs.
    """
    if data is None:
        return list(loaded.random_inputs(samples))
    module_name, separator, attribute = data.partition(":")
    if not separator:
        raise ModelSourceError(f"calibration data is named as module:function, got {data!r}")
    source = import_object(data, module_name, attribute)
    batches = source() if callable(source) else source
    if not isinstance(batches, Iterable):
        raise ModelSourceError(
            f"{data} must return an iterable of inputs, got {type(batches).__name__}"
        )
    taken = itertools.islice(cast(Iterable[object], batches), samples)
    return [_as_inputs(data, batch) for batch in taken]


def forward_loop(
    inputs: Iterable[Inputs], on_input: Callable[[int], None] | None = None
) -> Callable[[nn.Module], None]:
    """Returns a function that calls a model on each of ``inputs``."""

    def run(model: nn.Module) -> None:
        for index, (args, kwargs) in enumerate(inputs):
            run_batch(model, index, args, kwargs)
            if on_input is not None:
                on_input(index + 1)

    return run


def _as_inputs(data: str, batch: object) -> Inputs:
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, dict):
        return (), cast(dict[str, object], batch)
    if isinstance(batch, tuple | list):
        return tuple(cast(Iterable[object], batch)), {}
    raise ModelSourceError(
        f"{data} must yield a tensor, a tuple or a dict for each input, got {type(batch).__name__}"
    )
