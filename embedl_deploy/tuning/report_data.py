"""Reports of tuning read back from JSON."""

from collections.abc import Callable, Mapping
from typing import cast

import torch

from embedl_deploy.errors import CheckpointError
from embedl_deploy.tuning.graph_spec import ConstantSpec, GraphSpec, SizeRange, TensorSpec
from embedl_deploy.tuning.tuned_graph import (
    CandidateReport,
    Latency,
    OutputError,
    TunedGraph,
    TuningReport,
)


def graph_from_dict(data: Mapping[str, object]) -> TunedGraph:
    """Returns what ``TunedGraph.to_dict`` was given, without its model.

    Raises:
        CheckpointError: The JSON is none that it writes.
    """
    try:
        candidates = cast("list[Mapping[str, object]]", data["candidates"])
        found = TunedGraph(
            _spec(cast("Mapping[str, object]", data["graph"])),
            None,
            tuple(_candidate(candidate) for candidate in candidates),
            str(data["decision"]),
            _latency(data["eager"]),
        )
        TuningReport("", (found,)).describe()  # fails where a value is of another type
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"the saved report of a graph is damaged: {type(error).__name__}: {error}"
        ) from error
    return found


def _spec(data: Mapping[str, object]) -> GraphSpec:
    inputs = tuple(_input(item) for item in cast("list[Mapping[str, object]]", data["inputs"]))
    sizes = tuple(
        tuple(
            SizeRange(int(lower), int(upper), None if symbol is None else str(symbol), bool(batch))
            for lower, upper, symbol, batch in dimensions
        )
        for dimensions in cast("list[list[tuple[int, int, str | None, bool]]]", data["sizes"])
    )
    return GraphSpec(inputs, str(data["structure"]), sizes)


def _input(data: Mapping[str, object]) -> TensorSpec | ConstantSpec:
    name = str(data["name"])
    if "dtype" not in data:
        return ConstantSpec(name, str(data["kind"]), str(data["text"]))
    found: object = getattr(torch, str(data["dtype"]).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"not a dtype: {data['dtype']!r}")
    return TensorSpec(name, found, int(cast("int", data["rank"])))


def _candidate(data: Mapping[str, object]) -> CandidateReport:
    values = dict(data)
    outputs = cast("list[Mapping[str, object]]", values.pop("outputs"))
    notes = cast("list[object]", values.pop("notes"))
    latency = _latency(values.pop("latency"))
    make = cast("Callable[..., CandidateReport]", CandidateReport)
    return make(
        **values,
        outputs=tuple(cast("Callable[..., OutputError]", OutputError)(**item) for item in outputs),
        notes=tuple(str(note) for note in notes),
        latency=latency,
    )


def _latency(data: object) -> Latency | None:
    if data is None:
        return None
    return cast("Callable[..., Latency]", Latency)(**cast("Mapping[str, object]", data))
