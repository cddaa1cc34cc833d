"""Data as calls of a pipeline."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

Call = Callable[[], object]


def calls_of(
    pipeline: object, data: object, inference_function: Callable[..., object] | None
) -> list[Call]:
    """Returns one call of the pipeline per item of ``data``.

    A dict is keyword arguments, a tuple positional ones, anything else the one argument. A single
    tensor, string or dict is one item.

    Raises:
        ValueError: The pipeline cannot be called, or there is no data.
    """
    function = pipeline if inference_function is None else inference_function
    if not callable(function):
        raise ValueError(
            f"a {type(pipeline).__name__} cannot be called: pass inference_function, which runs it "
            "on one item of the data"
        )
    whole = isinstance(data, (Tensor, str, bytes, Mapping)) or not isinstance(data, Iterable)
    items = [cast("object", data)] if whole else list(cast("Iterable[object]", data))
    if not items:
        raise ValueError("the data holds no item to run the pipeline on")
    return [_call(function, item) for item in items]


def run(calls: Sequence[Call]) -> None:
    """Makes the calls, without gradients."""
    with torch.no_grad():
        for call in calls:
            call()


def _call(function: Callable[..., object], item: object) -> Call:
    if isinstance(item, Mapping):
        return partial(function, **cast("Mapping[str, object]", item))
    if isinstance(item, tuple):
        return partial(function, *cast("tuple[object, ...]", item))
    return partial(function, item)
