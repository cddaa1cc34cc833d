"""Transforms every model of the zoo and writes one JSON row for each: ``make zoo``."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from embedl_deploy.cli.random_weights import fill_zero_parameters, warm_up_norms
from embedl_deploy.files import write_aside
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.nodes import module_of, parts_of
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform
from embedl_deploy.tuning.machine import machine_info
from zoo.cases import Case, zoo
from zoo.present import groups_present

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """Runs the cases whose name holds one of the given words; all if none is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only cases whose name holds one of these")
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for case in zoo():
        if options.words and not any(word in case.name for word in options.words):
            continue
        row = run_case(case, options.backend)
        rows.append(row)
        sys.stdout.write(_line(row) + "\n")
        sys.stdout.flush()
    summary = summarise(rows)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    if options.output is not None:
        content = {"machine": machine_info(), "summary": summary, "rows": rows}
        write_aside(options.output, (json.dumps(content, indent=1) + "\n").encode())
    return 1 if summary["failed"] else 0


def run_case(case: Case, backend: str) -> dict[str, object]:
    """Returns the row of one model; a failure is a row with ``failure``."""
    row: dict[str, object] = {"model": case.name}
    try:
        model, args, kwargs = _prepared(case)
        row["present"] = groups_present(model, args, kwargs)
        began = time.perf_counter()
        traced = trace(model, args, kwargs)
        row["trace_seconds"] = round(time.perf_counter() - began, 2)
        began = time.perf_counter()
        result = transform(traced, backend=backend, verify=True)
        row["seconds"] = round(time.perf_counter() - began, 2)
        row["error"] = _error(model, result.model, args, kwargs)
    except Exception as error:  # noqa: BLE001  # the row must say what went wrong, and the run go on
        return {**row, "failure": f"{type(error).__name__}: {error}"[:500]}
    report = result.report
    row["nodes"] = len(traced.graph.nodes)
    row["matches"] = report.counts()
    row["refusals"] = dict(Counter(f"{r.pattern}: {r.reason}" for r in report.refusals()))
    row["rolled_back"] = [str(r) for r in report.refusals() if "rolled back" in (r.reason or "")]
    row["fused"] = groups_fused(result.model)
    return row


def groups_fused(graph_module: GraphModule) -> dict[str, int]:
    """Returns how many of each group the rewritten graph holds as one module."""
    counts = Counter[str]()
    for node in graph_module.graph.nodes:
        module = module_of(node)
        if module is None:
            continue
        parts = [type(part).__name__ for part in parts_of(module)]
        counts["attention"] += "Attention" in type(module).__name__
        counts["conv_norm"] += any("BatchNorm" in part for part in parts)
        counts["linear_activation"] += "FusedLinear" in type(module).__name__ and len(parts) > 1
    return {name: counts[name] for name in ("attention", "conv_norm", "linear_activation")}


def _prepared(case: Case) -> tuple[nn.Module, tuple[object, ...], Mapping[str, object]]:
    """Returns a model whose outputs are not degenerate, and its inputs."""
    model = case.build()
    args, kwargs = case.inputs(model)
    if case.in_float64:
        model = model.double()
        args, kwargs = tree_map_only(torch.Tensor, _widened, (args, dict(kwargs)))
    fill_zero_parameters(model)
    with torch.no_grad():
        warm_up_norms(model, lambda ready: ready(*args, **kwargs), rounds=2)
    return model, args, kwargs


def _error(
    model: nn.Module,
    result: GraphModule,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> float:
    with torch.no_grad():
        return relative_error(result(*args, **kwargs), model(*args, **kwargs))


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def summarise(rows: list[dict[str, object]]) -> dict[str, object]:
    """Returns totals over all rows, and the names of those that fall short."""
    present, fused = Counter[str](), Counter[str]()
    for row in rows:
        present.update(row.get("present", {}))
        fused.update(row.get("fused", {}))
    failed = [
        str(row["model"])
        for row in rows
        if "failure" in row or row["rolled_back"] or not _is_close(row)
    ]
    return {
        "models": len(rows),
        "failed": failed,
        "present": dict(present),
        "fused": dict(fused),
    }


def _is_close(row: dict[str, object]) -> bool:
    return float(str(row["error"])) <= 1e-4


def _line(row: dict[str, object]) -> str:
    if "failure" in row:
        return f"{row['model']}: FAILED {row['failure']}"
    return (
        f"{row['model']}: {row['nodes']} nodes, {row['seconds']} s, error {row['error']:.1e}, "
        f"present {list(row['present'].values())}, fused {list(row['fused'].values())}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
