"""The demo's findings as tables and as JSON."""

from collections.abc import Mapping

from rich.table import Table

from embedl_deploy.cli.demo.experiment import BF16, OURS, Experiment
from embedl_deploy.report.json_form import stage_json
from embedl_deploy.report.tables import stages_table
from embedl_deploy.tuning.machine import JsonValue
from embedl_deploy.tuning.measure import speedups


def experiment_table(experiment: Experiment) -> Table:
    """Returns the one table of a model: rewrites, arithmetic, speed, size, fidelity."""
    subject, timings = experiment.subject, experiment.timings
    table = stages_table(experiment.rewritten.records, f"{subject.name}: {subject.facts['input']}")
    figures = [
        ("multiply-accumulates in int8", f"{experiment.rewritten.integer_share:.1%}"),
        ("int8 and other kernels per call", _listed(kernels_of(experiment))),
        *(
            (
                f"latency of {name}",
                f"{timing.median_ms:.2f} ms, {ratio:.2f} times as fast as eager",
            )
            for (name, timing), ratio in zip(
                timings.items(), speedups(timings, over="eager").values(), strict=True
            )
        ),
        ("artifact", f"{_mb(experiment.artifact_bytes)} ({_mb(experiment.weight_bytes)} in fp32)"),
        ("fidelity", _listed(experiment.fidelity)),
        ("fidelity of bf16 torch.compile", _listed(experiment.fidelity_bf16)),
        (
            "loaded in a new process",
            "same outputs, byte for byte" if experiment.is_reproduced else "OTHER OUTPUTS",
        ),
    ]
    for name, value in figures:
        table.add_row("measured", name, "", "", value)
    return table


def experiment_json(experiment: Experiment) -> dict[str, JsonValue]:
    """Returns everything that the table shows, and the parts that are too long for it."""
    timings = experiment.timings
    return {
        "about": dict(experiment.subject.facts),
        "stages": {record.name: stage_json(record) for record in experiment.rewritten.records},
        "share_of_macs_in_int8": experiment.rewritten.integer_share,
        "kernels": dict(kernels_of(experiment)),
        "latency": {name: timing.as_json() for name, timing in timings.items()},
        "times_faster_than_eager": dict(speedups(timings, over="eager")),
        "times_faster_than_bf16_compile": timings[BF16].median_ms / timings[OURS].median_ms,
        "artifact": str(experiment.artifact),
        "artifact_bytes": experiment.artifact_bytes,
        "fp32_weight_bytes": experiment.weight_bytes,
        "fidelity": dict(experiment.fidelity),
        "fidelity_of_bf16_compile": dict(experiment.fidelity_bf16),
        "new_process": {
            "same_bytes": experiment.is_reproduced,
            "sha256": experiment.sha256,
            "sha256_in_new_process": experiment.sha256_fresh_process,
        },
    }


def kernels_of(experiment: Experiment) -> dict[str, int]:
    """Returns how many kernels of each kind one call runs, as the engines counted them."""
    found: dict[str, int] = {}
    for subgraph in experiment.lowered.report.subgraphs:
        for kind, count in subgraph.kernels.items():
            found[kind] = found.get(kind, 0) + count
    return found


def _listed(figures: Mapping[str, float | int]) -> str:
    shown = [
        f"{name.replace('_', ' ')} {value if isinstance(value, int) else format(value, '.4f')}"
        for name, value in figures.items()
    ]
    return ", ".join(shown) or "none counted"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
