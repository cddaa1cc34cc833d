"""Measures rewriting on graphs of 1k to 41k nodes, beside torch.fx and Inductor's matcher.

Run with ``python -m benchmarks.rewriting [sizes…]``; writes benchmarks/results/rewriting.json.
"""

import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.rewriting_graphs import exported_graph, lifted_graph
from benchmarks.rewriting_rules import MATCHERS, RULES, TOOLS, Rule
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.graph import TracedModule
from embedl_deploy.passes.quantization import find_matches, quantize_graph
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.rewriting import apply_plan, make_plan
from embedl_deploy.tuning.machine import machine_info

SIZES = (1_000, 5_000, 10_000, 41_000)
"""Nodes of the exported graph."""

RUNS = 3
"""How often the whole rewrite is run; the median is reported."""

RESULTS = Path(__file__).parent / "results" / "rewriting.json"
PATTERNS = (*TENSORRT.conversion_patterns, *TENSORRT.fusion_patterns)

P = ParamSpec("P")
T = TypeVar("T")


def measure(nodes: int) -> dict[str, object]:
    """Returns the figures for one size of graph."""
    row: dict[str, object] = {"exported_nodes": len(exported_graph(nodes).graph.nodes)}
    runs = sorted((whole_rewrite(nodes) for _ in range(RUNS)), key=lambda run: run["whole_s"])
    row.update(runs[RUNS // 2])
    row.update(memory(nodes))
    for rule in RULES:
        counts = {name: one_rule(row, nodes, name, rule) for name in (*TOOLS, *MATCHERS)}
        if len(set(counts.values())) > 1:
            raise AssertionError(f"the tools disagree on {rule.name}: {counts}")
        row[f"{rule.name}_count"] = counts["ours"]
    return row


def one_rule(row: dict[str, object], nodes: int, tool: str, rule: Rule) -> int:
    """Notes in ``row`` the seconds of one tool for one rule; returns how often it was applied."""
    graph_module = exported_graph(nodes)
    count, row[f"{rule.name}_{tool}_s"] = timed({**TOOLS, **MATCHERS}[tool], graph_module, rule)
    return count


def whole_rewrite(nodes: int) -> dict[str, float]:
    """Returns the seconds of conversion and fusion, of smooth, and of inserting quantizers.

    These are the steps of ``quantize`` on a model that it traces itself, so that the Python code
    of the graph is written once, at the end. Without calibration smooth looks for its sites and
    moves nothing.
    """
    traced = lifted_graph(nodes)
    plan, planned = timed(make_plan, traced, PATTERNS, TENSORRT.name)
    (result, report), applied = timed(apply_plan, plan, deferred=True)
    lifted = len(traced.graph.nodes)
    del plan, traced  # as ``quantize`` lets go of them
    smooth, smoothed = timed(find_matches, result, TENSORRT.smooth_patterns)
    _, inserted = timed(insert, result)
    return {
        "lifted_nodes": lifted,
        "rewritten_nodes": len(result.graph.nodes),
        "sites": report.applied_count,
        "smooth_sites": sum(match.refusal is None for match in smooth),
        "plan_s": planned,
        "apply_s": applied,
        "smooth_s": smoothed,
        "insert_s": inserted,
        "whole_s": planned + applied + smoothed + inserted,
    }


def insert(graph: TracedModule) -> None:
    """Inserts quantizers into a graph and writes its Python code."""
    quantize_graph(graph, None, QuantConfig(), TENSORRT)
    graph.finish()


def memory(nodes: int) -> dict[str, object]:
    """Returns the peak of rewriting against what the exported graph itself takes."""
    tracemalloc.start()
    try:
        exported = exported_graph(nodes)
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        del exported
        traced = lifted_graph(nodes)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result, _ = apply_plan(make_plan(traced, PATTERNS, TENSORRT.name), deferred=True)
        find_matches(result, TENSORRT.smooth_patterns)
        insert(result)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return {"graph_bytes": size, "peak_bytes": peak, "peak_over_graph": peak / size}


def timed(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """Returns a result and the processor seconds it took: other processes do not count."""
    gc.collect()
    start = time.process_time()
    return call(*args, **kwargs), time.process_time() - start


def main() -> None:
    """Measures the sizes given on the command line, all if none."""
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    measure(500)  # imports and first calls
    rows: list[dict[str, object]] = []
    for size in sizes:
        row = measure(size)
        rows.append(row)
        print(json.dumps(row))
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"machine": machine_info(), "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
