"""What a search for precisions found, as tables."""

from collections.abc import Iterable

from rich.table import Table

from embedl_deploy.quantization.config_file import config_as_json
from embedl_deploy.quantization.search_result import FrontierPoint, PrecisionSearchResult, Trial
from embedl_deploy.report.json_form import json_value
from embedl_deploy.report.tables import facts_table
from embedl_deploy.tuning.machine import JsonValue


def groups_table(result: PrecisionSearchResult, title: str = "Precisions, group by group") -> Table:
    """Returns one row per group: what it costs and saves, and why it is what it is."""
    unit = _unit(result)
    table = Table(title=title, title_justify="left")
    table.add_column("group")
    table.add_column("precision")
    table.add_column("error alone", justify="right")
    table.add_column(f"saves {unit}", justify="right")
    table.add_column("why")
    for group in result.groups:
        precision = "quantized" if group.quantized else "float"
        table.add_row(
            group.name, precision, f"{group.error:.1e}", f"{group.saving:.4g}", group.reason
        )
    for name, reason in result.fixed.items():
        table.add_row(name, "quantized", "", "", f"always: {reason}")
    return table


def frontier_table(result: PrecisionSearchResult, title: str = "Frontier") -> Table:
    """Returns one row per choice that no other is predicted to beat, the largest saving first."""
    table = Table(title=title, title_justify="left")
    columns = ("quantized", f"saves {_unit(result)}", "error predicted", "metric", "ms", "bytes")
    for column in columns:
        table.add_column(column, justify="right")
    for point in result.frontier:
        table.add_row(*_cells(point))
    return table


def search_facts(result: PrecisionSearchResult, title: str = "Search") -> Table:
    """Returns the budget, what was reached, and what it took to find."""
    chosen = result.chosen
    rows = [
        ("budget", str(result.budget)),
        ("groups quantized", f"{len(result.quantized)} of {len(result.groups)}"),
        ("metric", f"{chosen.metric:.6g}, {result.float_metric:.6g} in float"),
        ("bytes of parameters", f"{chosen.bytes:,}, {result.float_bytes:,} in float"),
        *_latency(result, chosen),
        ("choices checked", str(len(result.trials))),
        ("sensitivities from", f"{result.batches} batches"),
        ("knapsack", "exact" if result.is_exact else "approximate, too many choices to keep all"),
    ]
    return facts_table(title, rows)


def search_json(result: PrecisionSearchResult) -> dict[str, JsonValue]:
    """Returns the whole result; ``config`` is what ``load_config`` reads."""
    return {
        "config": json_value(config_as_json(result.config)),
        "budget": {"kind": result.budget.kind, "limit": result.budget.limit},
        "chosen": _trial_json(result.chosen),
        "drop": result.drop,
        "float": {
            "metric": result.float_metric,
            "bytes": result.float_bytes,
            "latency_ms": result.float_latency_ms,
        },
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "quantized": group.quantized,
                "error": group.error,
                "saving": group.saving,
                "macs": group.macs,
                "reason": group.reason,
            }
            for group in result.groups
        ],
        "fixed": json_value(result.fixed),
        "frontier": [
            {"quantized": point.quantized, "saving": point.saving, "error": point.error}
            for point in result.frontier
        ],
        "trials": _trials_json(result.trials),
        "exact": result.is_exact,
        "batches": result.batches,
    }


def _unit(result: PrecisionSearchResult) -> str:
    return "bytes" if result.budget.kind == "max_bytes" else "ms"


def _cells(point: FrontierPoint) -> tuple[str, ...]:
    measured = ("", "", "")
    if point.trial is not None:
        latency = point.trial.latency_ms
        measured = (
            f"{point.trial.metric:.6g}",
            "" if latency is None else f"{latency:.3f}",
            f"{point.trial.bytes:,}",
        )
    return (str(point.quantized), f"{point.saving:.4g}", f"{point.error:.1e}", *measured)


def _latency(result: PrecisionSearchResult, chosen: Trial) -> list[tuple[str, str]]:
    if chosen.latency_ms is None or result.float_latency_ms is None:
        return []
    return [("latency", f"{chosen.latency_ms:.3f} ms, {result.float_latency_ms:.3f} in float")]


def _trials_json(trials: Iterable[Trial]) -> list[JsonValue]:
    return [_trial_json(trial) for trial in trials]


def _trial_json(trial: Trial) -> dict[str, JsonValue]:
    return {
        "quantized": list(trial.quantized),
        "bytes": trial.bytes,
        "metric": trial.metric,
        "latency_ms": trial.latency_ms,
    }
