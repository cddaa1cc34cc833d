"""Records as JSON values, for files and for machines that read them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from embedl_deploy.rewriting import PassRecord, SiteRecord, TransformationReport
from embedl_deploy.tuning.machine import JsonValue

_NODE = re.compile(r"%\w+")


@dataclass(frozen=True)
class RefusalGroup:
    """Sites that one pattern left alone for one reason."""

    pattern: str
    reason: str
    """With every node name replaced by ``%…``."""

    sites: tuple[str, ...]
    first: str
    """The reason in full at the first site."""


def transformation_json(report: TransformationReport) -> dict[str, JsonValue]:
    """Returns what was applied and what was left alone per stage, with the reasons."""
    return {
        "backend": report.backend,
        "tracer": report.tracer,
        "applied_count": report.applied_count,
        "skipped_count": report.skipped_count,
        "stages": {record.name: stage_json(record, report) for record in report.passes},
        "key_map": {old: list(new) for old, new in report.key_map.items()},
        "notes": list(report.notes),
    }


def stage_json(
    record: PassRecord, report: TransformationReport | None = None
) -> dict[str, JsonValue]:
    """Returns one stage: counts of applied patterns, grouped refusals, time, notes."""
    coverage = None if report is None else report.coverage.get(record.name)
    return {
        "applied": dict(Counter(site.pattern for site in record.applied).most_common()),
        "refused": [
            {
                "pattern": group.pattern,
                "reason": group.reason,
                "count": len(group.sites),
                "sites": list(group.sites),
                "first": group.first,
            }
            for group in refusal_groups(record.refused)
        ],
        "share_of_macs": coverage,
        "seconds": round(record.seconds, 4),
        "notes": list(record.notes),
    }


def refusal_groups(refused: Iterable[SiteRecord]) -> list[RefusalGroup]:
    """Returns the refusals with those together that differ only in the nodes they name."""
    groups: dict[tuple[str, str], list[SiteRecord]] = {}
    for record in refused:
        reason = _NODE.sub("%…", record.reason or "")
        groups.setdefault((record.pattern, reason), []).append(record)
    return [
        RefusalGroup(
            pattern=pattern,
            reason=reason,
            sites=tuple(record.site for record in records),
            first=records[0].reason or "",
        )
        for (pattern, reason), records in groups.items()
    ]


def json_value(value: object) -> JsonValue:
    """Returns a record's values as JSON: tuples become lists, what JSON lacks becomes text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        items = cast(Mapping[object, object], value).items()
        return {str(key): json_value(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in cast(Sequence[object], value)]
    return str(value)
