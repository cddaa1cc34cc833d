"""The parts of a lowered model, and how they become one callable."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from embedl_deploy.engines.engine import Engine
from embedl_deploy.lowering.core_graph import CoreGraph
from embedl_deploy.lowering.engine_call import EngineCall, Results
from embedl_deploy.lowering.partitioning import Partition, Subgraph
from embedl_deploy.lowering.report import FallbackCounts
from embedl_deploy.lowering.stitch import Piece, pieces_of, stitch


@dataclass(frozen=True)
class EngineSlot:
    """A built engine and how its inputs must lie in memory."""

    engine: Engine
    label: str
    formats: tuple[torch.memory_format | None, ...]
    """For each input of the subgraph its layout; None for numbers and scalars."""


@dataclass(frozen=True)
class Assembly:
    """A core graph, how it is cut, and an engine for each subgraph."""

    core: CoreGraph
    partition: Partition
    pieces: tuple[Piece, ...]
    slots: Mapping[str, EngineSlot]

    @property
    def is_whole(self) -> bool:
        """Whether one engine runs everything, so that nothing needs stitching."""
        return is_whole(self.core.module, self.partition)

    def runner(
        self, counts: FallbackCounts, fallback: bool
    ) -> tuple[Callable[..., Results], GraphModule | None]:
        """Returns what takes the core's arguments, and the stitched graph if there is one."""
        calls = {
            piece.subgraph.name: (
                piece,
                EngineCall(
                    piece.subgraph.name,
                    self.slots[piece.subgraph.name].engine,
                    piece.module,
                    self.slots[piece.subgraph.name].formats,
                    counts,
                    fallback=fallback,
                ),
            )
            for piece in self.pieces
        }
        if self.is_whole:
            ((_, call),) = calls.values()
            return call.direct, None
        if not calls:
            return self.core.module.forward, None
        stitched = stitch(self.core.module, self.partition, calls)
        return stitched.forward, stitched

    def copied(self, memo: dict[int, object]) -> "Assembly":
        """Returns an assembly around a deep copy of the graph; engines are shared."""
        module = deepcopy(self.core.module, memo)
        return assemble(replace(self.core, module=module), self.steps_by_name(), self.slots)

    def steps_by_name(self) -> list[tuple[str, str, list[str]]]:
        """Returns each step as (subgraph or "", engine, names of its nodes)."""
        return [
            (step.name, step.engine, [node.name for node in step.nodes])
            if isinstance(step, Subgraph)
            else ("", "", [step.name])
            for step in self.partition.steps
        ]


def assemble(
    core: CoreGraph,
    steps: Sequence[tuple[str, str, Sequence[str]]],
    slots: Mapping[str, EngineSlot],
) -> Assembly:
    """Returns the assembly of a graph that was cut before, from the names of the nodes.

    Raises:
        KeyError: The graph has no node of such a name.
    """
    nodes: dict[str, Node] = {node.name: node for node in core.module.graph.nodes}
    partition = Partition(
        tuple(
            Subgraph(name, engine, tuple(nodes[member] for member in members))
            if name
            else nodes[members[0]]
            for name, engine, members in steps
        )
    )
    return Assembly(core, partition, cut(core.module, partition), slots)


def cut(graph_module: GraphModule, partition: Partition) -> tuple[Piece, ...]:
    """Returns the pieces of a partition; the one piece of a whole graph is the graph itself."""
    if not is_whole(graph_module, partition):
        return pieces_of(graph_module, partition)
    output = graph_module.graph.output_node().args[0]
    assert isinstance(output, tuple)
    results = tuple(node for node in output if isinstance(node, Node))
    inputs = tuple(graph_module.graph.find_nodes(op="placeholder"))
    return (Piece(partition.subgraphs[0], graph_module, inputs, results),)


def is_whole(graph_module: GraphModule, partition: Partition) -> bool:
    """Tells whether a partition is one subgraph that computes every result."""
    if len(partition.steps) != 1 or not isinstance(partition.steps[0], Subgraph):
        return False
    inside = set(partition.steps[0].nodes)
    return all(node in inside for node in graph_module.graph.output_node().all_input_nodes)
