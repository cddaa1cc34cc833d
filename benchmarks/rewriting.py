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
from typing import TypeVar

import torch
from torch import Tensor
from torch._inductor.pattern_matcher import (
    Arg,
    CallFunction,
    Match,
    PatternMatcherPass,
    register_graph_pattern,
)
from torch.fx import GraphModule, Node, replace_pattern

from benchmarks.rewriting_graphs import exported_graph, lifted_graph
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantize import insert_qdq
from embedl_deploy.rewriting import (
    Chain,
    Pattern,
    PatternMatch,
    Phase,
    apply_patterns,
    apply_plan,
    make_plan,
)
from embedl_deploy.tuning.machine import machine_info

SIZES = (1_000, 5_000, 10_000, 41_000)
"""Nodes of the exported graph."""

RESULTS = Path(__file__).parent / "results" / "rewriting.json"
PATTERNS = (*TENSORRT.conversion_patterns, *TENSORRT.fusion_patterns)
_LARGEST_WITH_REPLACE_PATTERN = 41_000
_ATEN = torch.ops.aten

T = TypeVar("T")


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Stands for any fused kernel in the comparison of matchers."""
    return _ATEN.gelu.default(_ATEN.linear.default(x, weight, bias))


torch.fx.wrap("linear_gelu")


class FuseLinearGelu(Pattern):
    """The one rule that all three tools apply."""

    phase = Phase.FUSION
    tree = Chain(linear=_ATEN.linear.default, act=_ATEN.gelu.default)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(linear_gelu, *match["linear"].args)


def with_ours(graph_module: GraphModule) -> int:
    """Applies the rule; returns how often."""
    return len(apply_patterns(graph_module, [FuseLinearGelu]).applied)


def with_inductor(graph_module: GraphModule) -> int:
    """Applies the rule with Inductor's matcher; returns how often."""
    matcher = PatternMatcherPass("benchmark")
    pattern = CallFunction(
        _ATEN.gelu.default, CallFunction(_ATEN.linear.default, Arg(), Arg(), Arg())
    )

    @register_graph_pattern(pattern, pass_dict=matcher)
    def fuse(match: Match, x: Node, weight: Node, bias: Node) -> None:
        output = match.output_node()
        with match.graph.inserting_before(output):
            made = match.graph.call_function(linear_gelu, (x, weight, bias))
        made.meta.update(output.meta)
        output.replace_all_uses_with(made)
        match.erase_nodes()

    del fuse
    return matcher.apply(graph_module.graph)


def with_replace_pattern(graph_module: GraphModule) -> int:
    """Applies the rule with torch.fx; returns how often."""

    def pattern(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _ATEN.gelu.default(_ATEN.linear.default(x, weight, bias))

    return len(replace_pattern(graph_module, pattern, linear_gelu))


def measure(nodes: int) -> dict[str, object]:
    """Returns the figures for one size of graph."""
    row: dict[str, object] = {"exported_nodes": len(exported_graph(nodes).graph.nodes)}
    row.update(whole_rewrite(nodes))
    row.update(memory(nodes))
    tools: dict[str, Callable[[GraphModule], int]] = {
        "ours": with_ours,
        "inductor": with_inductor,
        "replace_pattern": with_replace_pattern,
    }
    for name, apply in tools.items():
        if name == "replace_pattern" and nodes > _LARGEST_WITH_REPLACE_PATTERN:
            continue
        graph_module = exported_graph(nodes)
        count, seconds = timed(lambda: apply(graph_module))  # noqa: B023  # called at once
        row[f"one_rule_{name}_s"] = seconds
        row[f"one_rule_{name}_count"] = count
    return row


def whole_rewrite(nodes: int) -> dict[str, object]:
    """Returns the seconds of conversion and fusion, and of inserting quantizers after them."""
    traced = lifted_graph(nodes)
    plan, planned = timed(lambda: make_plan(traced, PATTERNS, TENSORRT.name))
    (result, report), applied = timed(lambda: apply_plan(plan))
    _, inserted = timed(lambda: insert_qdq(result, None, QuantConfig(), backend=TENSORRT))
    return {
        "lifted_nodes": len(traced.graph.nodes),
        "rewritten_nodes": len(result.graph.nodes),
        "sites": report.applied_count,
        "plan_s": planned,
        "apply_s": applied,
        "insert_s": inserted,
        "whole_s": planned + applied + inserted,
    }


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
        apply_plan(make_plan(traced, PATTERNS, TENSORRT.name))
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return {"graph_bytes": size, "peak_bytes": peak, "peak_over_graph": peak / size}


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Returns a result and the processor seconds it took: other processes do not count."""
    gc.collect()
    start = time.process_time()
    return call(), time.process_time() - start


def main() -> None:
    """Measures the sizes given on the command line, all if none."""
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    measure(200)  # imports and first calls
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
