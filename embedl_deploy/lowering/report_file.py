"""A lowering report as JSON, and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.graph_file import fields
from embedl_deploy.lowering.literals import Json, decode, encode
from embedl_deploy.lowering.report import (
    BoundaryValue,
    FailedBuild,
    LoweringReport,
    Measurement,
    NodeRefusal,
    SubgraphReport,
)

_RECORDS: Mapping[str, Callable[..., object]] = {
    kind.__name__: kind
    for kind in (BoundaryValue, FailedBuild, Measurement, NodeRefusal, SubgraphReport)
}
_FIELDS = ("subgraphs", "eager_nodes", "refusals", "recommendations", "notes", "whole")


def report_to_json(report: LoweringReport) -> Json:
    """Returns the report as JSON, without its counts of fallbacks: a loaded model starts at 0."""
    return {name: record_to_json(getattr(report, name), {}) for name in _FIELDS}


def report_from_json(data: Json) -> LoweringReport:
    """Returns the report that ``report_to_json`` was given.

    Raises:
        CheckpointError: The JSON is damaged.
    """
    content = fields(data, "report")
    try:
        return LoweringReport(**{name: _tuple(content[name]) for name in _FIELDS})  # type: ignore[arg-type]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"the saved report is damaged: {error}") from error


def record_to_json(value: object, more: Mapping[str, Callable[..., object]]) -> Json:
    """Returns a report's record as JSON; ``more`` are further dataclasses by name."""
    if type(value).__name__ in {**_RECORDS, **more}:
        inner = {name: record_to_json(item, more) for name, item in vars(value).items()}
        return {"$record": type(value).__name__, "fields": inner}
    if isinstance(value, (tuple, list)):
        return [record_to_json(item, more) for item in cast("Sequence[object]", value)]
    return encode(value)


def record_from_json(value: Json, more: Mapping[str, Callable[..., object]]) -> object:
    """Returns the record that ``record_to_json`` was given.

    Raises:
        CheckpointError: The JSON is damaged.
        KeyError: It names a class that is not known.
        TypeError: Its fields are not those of the class.
    """
    if isinstance(value, dict) and "$record" in value:
        kind = {**_RECORDS, **more}[str(value["$record"])]
        inner = fields(value.get("fields"), "record")
        return kind(**{name: record_from_json(item, more) for name, item in inner.items()})
    if isinstance(value, list):
        return tuple(record_from_json(item, more) for item in value)
    return decode(value)


def _tuple(value: Json) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise CheckpointError("the saved report is damaged")
    return tuple(record_from_json(item, {}) for item in value)
