"""Transforms every model of the zoo and writes one JSON row for each: ``make zoo``."""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from benchmarks.zoo.cases import Case, zoo
from benchmarks.zoo.fused import groups_fused, misses
from benchmarks.zoo.present import groups_present
from benchmarks.zoo.workers import on_each
from embedl_deploy.cli.random_weights import fill_zero_parameters, warm_up_norms
from embedl_deploy.files import write_aside
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import apply_transformation_plan, get_transformation_plan
from embedl_deploy.tuning.machine import machine_info


def main() -> int:
    """Runs the cases whose name holds one of the given words; all if none is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only cases whose name holds one of these")
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--output", type=Path, default=None, help="where to write the rows")
    parser.add_argument("--resume", action="store_true", help="keep the rows already there")
    parser.add_argument("--plans", type=Path, default=None, help="a folder for every plan")
    parser.add_argument("--only-plans", action="store_true", help="write plans, apply nothing")
    parser.add_argument("--workers", type=int, default=1, help="how many processes to use")
    options = parser.parse_args()
    names = [case.name for case in chosen(options.words)]
    if options.only_plans:
        write = partial(_write_plan, backend=options.backend, folder=options.plans)
        return 0 if all(on_each(write, names, options.workers)) else 1
    rows = earlier_rows(options.output) if options.resume else []
    done = {row["model"] for row in rows}
    run = partial(run_case, backend=options.backend, plans=options.plans)
    for row in on_each(run, [name for name in names if name not in done], options.workers):
        rows.append(row)
        sys.stdout.write(_line(row) + "\n")
        sys.stdout.flush()
        _write(options.output, rows)
    summary = summarise(rows)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 1 if summary["failed"] or summary["below_95_percent"] else 0


def earlier_rows(output: Path | None) -> list[dict[str, object]]:
    """Returns the rows of an earlier run that did not fail."""
    if output is None or not output.exists():
        return []
    return [row for row in json.loads(output.read_text())["rows"] if "failure" not in row]


def _write(output: Path | None, rows: list[dict[str, object]]) -> None:
    if output is not None:
        content = {"machine": machine_info(), "summary": summarise(rows), "rows": rows}
        write_aside(output, (json.dumps(content, indent=1) + "\n").encode())


def chosen(words: list[str]) -> Iterator[Case]:
    """Returns the cases whose name holds one of ``words``, all if there are none."""
    return (case for case in zoo() if not words or any(word in case.name for word in words))


def _write_plan(case: Case, backend: str, folder: Path) -> bool:
    model, args, kwargs = prepared(case)
    plan = get_transformation_plan(model, args, kwargs, backend=backend)
    plan.save(folder / plan_name(case))
    return True


def plan_name(case: Case) -> str:
    """Returns the name of the file that holds the plan of ``case``."""
    return f"{case.name.replace('/', '_')}.json"


def run_case(case: Case, backend: str, plans: Path | None = None) -> dict[str, object]:
    """Returns the row of one model; a failure is a row with ``failure``."""
    row: dict[str, object] = {"model": case.name}
    try:
        model, args, kwargs = prepared(case)
        present = groups_present(model, args, kwargs)
        began = time.perf_counter()
        traced = trace(model, args, kwargs)
        row["trace_seconds"] = round(time.perf_counter() - began, 2)
        began = time.perf_counter()
        plan = get_transformation_plan(traced, args, kwargs, backend=backend)
        row["seconds"] = round(time.perf_counter() - began, 2)
        if plans is not None:
            plan.save(plans / plan_name(case))
        result = apply_transformation_plan(plan, args, kwargs, verify=True)
        row["error"], row["allowed"] = _error(model, result.model, args, kwargs), case.allowed
    except Exception as error:  # noqa: BLE001  # the row must say what went wrong, and the run go on
        return {**row, "failure": f"{type(error).__name__}: {error}"[:500]}
    report, fused = result.report, groups_fused(result.model)
    row["nodes"] = len(traced.graph.nodes)
    row["matches"] = report.counts()
    row["refusals"] = dict(Counter(f"{r.pattern}: {_kind(r.reason)}" for r in report.refusals()))
    row["rolled_back"] = [str(r) for r in report.refusals() if "rolled back" in (r.reason or "")]
    row["present"] = {name: sites.total() for name, sites in present.items()}
    row["fused"] = {name: sites.total() for name, sites in fused.items()}
    row["misses"] = misses(present, fused, traced, report)
    return row


def _kind(reason: str | None) -> str:
    """Returns a reason without the names of nodes, so that equal ones can be counted."""
    return re.sub(r"%\w+", "%…", reason or "")[:300]


def prepared(case: Case) -> tuple[nn.Module, tuple[object, ...], Mapping[str, object]]:
    """Returns a model whose outputs are not degenerate, and its inputs."""
    model = case.build()
    args, kwargs = case.inputs(model)
    if case.in_float64:
        model = model.double()
        args, kwargs = tree_map_only(torch.Tensor, _widened, (args, dict(kwargs)))
    fill_zero_parameters(model)
    with torch.no_grad():
        warm_up_norms(model, lambda ready: ready(*_pair(args), **kwargs), rounds=2)
    return model, args, kwargs


def _pair(args: tuple[object, ...]) -> tuple[object, ...]:
    """Returns images with a second one each: a norm after global pooling needs two."""
    generator = torch.Generator().manual_seed(1)

    def pair(image: torch.Tensor) -> torch.Tensor:
        return torch.cat([image, torch.randn(image.shape, generator=generator)])

    return tree_map_only(torch.Tensor, pair, args)


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
        if "failure" in row:
            continue
        present.update(row["present"])
        # What a row fuses beyond what was counted there makes up for no miss elsewhere.
        fused.update({k: min(n, row["present"][k]) for k, n in row["fused"].items()})
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
        "below_95_percent": [k for k, n in present.items() if fused[k] < 0.95 * n],
        "short": {str(row["model"]): row["misses"] for row in rows if row.get("misses")},
    }


def _is_close(row: dict[str, object]) -> bool:
    return float(str(row["error"])) <= float(str(row["allowed"]))


def _line(row: dict[str, object]) -> str:
    if "failure" in row:
        return f"{row['model']}: FAILED {row['failure']}"
    return (
        f"{row['model']}: {row['nodes']} nodes, {row['seconds']} s, error {row['error']:.1e}, "
        f"present {list(row['present'].values())}, fused {list(row['fused'].values())}"
        + (", rolled back" if row["rolled_back"] else "")
    )


if __name__ == "__main__":
    raise SystemExit(main())
