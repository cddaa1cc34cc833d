"""Times our partitioner and torch's CapabilityBasedPartitioner on graphs of growing size.

    python benchmarks/partitioner.py [--out benchmarks/results/partitioner.json]

One graph shape: residual blocks of ten operations, one of which no engine takes. torch's
partitioner is left out from the size on at which its run is expected to take longer than the limit.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from embedl_deploy.lowering.partitioning import partition
from embedl_deploy.tuning.machine import machine_info

SIZES = (1_000, 2_000, 4_000, 10_000, 20_000, 40_000)
LIMIT_S = 60.0
REPEATS = 7

aten = torch.ops.aten


class SupportsAllButSin(OperatorSupportBase):
    """What torch's partitioner asks; the same answer that ours is given."""

    def is_node_supported(self, submodules: Mapping[str, nn.Module], node: Node) -> bool:
        del submodules
        return node.op == "call_function" and node.target is not aten.sin.default


def residual_chain(size: int) -> GraphModule:
    """Returns a graph of ``size`` operations: blocks of ten with a skip connection."""
    graph = Graph()
    value = graph.placeholder("x")
    for _ in range(size // 10):
        skip = value
        for target in (aten.relu, aten.cos, aten.exp, aten.neg, aten.sin, aten.abs, aten.tanh):
            value = graph.call_function(target.default, (value,))
        for _ in range(3):
            value = graph.call_function(aten.add.Tensor, (value, skip))
    graph.output((value,))
    return GraphModule(nn.Module(), graph)


def ours(graph_module: GraphModule) -> int:
    """Returns how many subgraphs our partitioner makes."""
    takers = {
        node: ("engine",) if node.target is not aten.sin.default else ()
        for node in graph_module.graph.nodes
    }
    return len(partition(graph_module.graph, takers).subgraphs)


def theirs(graph_module: GraphModule) -> int:
    """Returns how many subgraphs torch's partitioner makes."""
    partitioner = CapabilityBasedPartitioner(
        graph_module, SupportsAllButSin(), allows_single_node_partition=True
    )
    return len(partitioner.propose_partitions())


def timed(
    call: Callable[[GraphModule], int], graph_module: GraphModule, repeats: int
) -> dict[str, float]:
    """Returns the shortest of ``repeats`` runs in seconds, and the number of subgraphs."""
    seconds: list[float] = []
    count = 0
    for _ in range(repeats):
        start = time.perf_counter()
        count = call(graph_module)
        seconds.append(time.perf_counter() - start)
    return {"seconds": round(min(seconds), 4), "subgraphs": count}


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/partitioner.json"))
    parser.add_argument("--limit", type=float, default=LIMIT_S)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    last, before = 0.0, SIZES[0]
    for size in SIZES:
        graph_module = residual_chain(size)
        row: dict[str, object] = {"nodes": size, "ours": timed(ours, graph_module, REPEATS)}
        # Its time grows with the square of the size, or faster.
        if last * (size / before) ** 2 <= options.limit:
            found = timed(theirs, graph_module, 1)
            row["torch"], last, before = found, found["seconds"], size
        else:
            last = float("inf")
        rows.append(row)
        print(row, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine_info(), "limit_s": options.limit, "rows": rows}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
