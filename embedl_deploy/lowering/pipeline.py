"""From a flat graph to a lowered model: ask, cut, build, stitch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Signature as PythonSignature

from torch.fx import GraphModule, Node

from embedl_deploy.graph.record import record_of
from embedl_deploy.lowering.assembly import Assembly, cut
from embedl_deploy.lowering.candidates import (
    Assignment,
    Candidates,
    assigned,
    candidates_of,
)
from embedl_deploy.lowering.choose import BuildSettings, Built, build_piece
from embedl_deploy.lowering.core_graph import CoreGraph, core_of
from embedl_deploy.lowering.engine_choice import EngineChoice
from embedl_deploy.lowering.lowered_module import LoweredModule
from embedl_deploy.lowering.partitioning import Partition, partition, without
from embedl_deploy.lowering.planning import describe_piece, plan_of
from embedl_deploy.lowering.report import LoweringPlan, LoweringReport
from embedl_deploy.lowering.simulation import refuse_simulated
from embedl_deploy.lowering.stitch import Piece, boundary_values


@dataclass(frozen=True)
class LoweringRequest:
    """What to lower, for which inputs, with which engines."""

    graph_module: GraphModule
    """Flat: convolutions, linears and the like as ATen calls, quantization as Q/DQ pairs."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    engines: Sequence[EngineChoice]
    """In order of preference."""

    pins: Mapping[str, EngineChoice] = field(default_factory=dict[str, EngineChoice])
    """From a pattern of module paths to the engine of what was made there."""

    min_nodes: int = 1
    atomic: Sequence[Sequence[str]] = ()
    """Names of nodes that no cut may divide."""

    assignment: Assignment | None = None
    """Who takes what, if that is settled; where it does not fit the graph, engines are asked."""

    python_signature: PythonSignature | None = None
    """The signature of the model's own ``forward``."""

    build: BuildSettings = field(default_factory=BuildSettings)
    fallback: bool = True
    allow_simulated: bool = False
    """Whether quantize and dequantize may run as float arithmetic."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Cut:
    core: CoreGraph
    candidates: Candidates
    partition: Partition
    pieces: tuple[Piece, ...]


def plan_graph(request: LoweringRequest) -> LoweringPlan:
    """Returns what ``lower_graph`` would do, building nothing."""
    cut_graph = _cut(request)
    engines = cut_graph.candidates.engines
    values = boundary_values(cut_graph.core.module, cut_graph.pieces, cut_graph.core.examples)
    return plan_of(
        [
            describe_piece(piece, engines[piece.subgraph.engine].describe(), values)
            for piece in cut_graph.pieces
        ],
        cut_graph.partition.eager_nodes,
        cut_graph.candidates.refusals,
    )


def lower_graph(request: LoweringRequest) -> LoweredModule:
    """Returns the graph with every subgraph built.

    Raises:
        LoweringError: The example arguments are not those the graph was traced for, or
            quantization would run as float arithmetic.
        InputError: A size of theirs lies outside the graph's declared ranges.
        ValueError: An engine is unknown, or an atomic group cannot run in one piece.
    """
    cut_graph = _cut(request)
    built = _build_all(cut_graph, cut_graph.pieces, request.build, {})
    cuts = without(cut_graph.partition, [one.piece.subgraph.name for one in built if not one.slot])
    if any(one.slot and one.slot.label != one.piece.subgraph.engine for one in built):
        joined = _joined(cut_graph, built, request)
        if joined is not None:
            cuts, built = joined
    if not request.allow_simulated:
        refuse_simulated(cuts.eager_nodes, built, cut_graph.candidates.refusals)
    return _module(cut_graph, cuts, built, request)


def _joined(
    cut_graph: _Cut, built: Sequence[Built], request: LoweringRequest
) -> tuple[Partition, list[Built]] | None:
    """Merges neighbours that ended with the same engine; None if that does not build."""
    labels = {
        node: (one.slot.label,)
        for one in built
        if one.slot is not None
        for node in one.piece.subgraph.nodes
    }
    graph = cut_graph.core.module.graph
    joined = partition(graph, labels, atomic=_atomic(cut_graph.core, request.atomic))
    known = {frozenset(one.piece.subgraph.nodes): one for one in built}
    pieces = cut(cut_graph.core.module, joined)
    again = _build_all(cut_graph, pieces, request.build, known)
    failed = [one for one in built if one.slot is None]
    if any(one.slot is None or one.slot.label != one.piece.subgraph.engine for one in again):
        return None
    return joined, [*again, *failed]


def _cut(request: LoweringRequest) -> _Cut:
    record = record_of(request.graph_module)
    core = core_of(
        request.graph_module,
        request.args,
        request.kwargs,
        request.python_signature,
        record.range_constraints,
    )
    before = None if request.assignment is None else assigned(core.module, request.assignment)
    candidates = before or candidates_of(core.module, request.engines, request.pins)
    cuts = partition(
        core.module.graph,
        candidates.takers,
        min_nodes=request.min_nodes,
        atomic=_atomic(core, request.atomic),
    )
    return _Cut(core, candidates, cuts, cut(core.module, cuts))


def _atomic(core: CoreGraph, groups: Sequence[Sequence[str]]) -> list[list[Node]]:
    if not groups:
        return []
    nodes = {node.name: node for node in core.module.graph.nodes}
    unknown = [name for group in groups for name in group if name not in nodes]
    if unknown:
        raise ValueError(f"atomic names nodes that the graph does not have: {unknown[:5]}")
    return [[nodes[name] for name in group] for group in groups if group]


def _build_all(
    cut_graph: _Cut,
    pieces: Sequence[Piece],
    settings: BuildSettings,
    known: Mapping[frozenset[Node], Built],
) -> list[Built]:
    """Builds every piece that is not known already, each on its own example inputs."""
    values = boundary_values(cut_graph.core.module, pieces, cut_graph.core.examples)
    settings = replace(settings, symbols=cut_graph.core.signature.symbols)
    takers, engines = cut_graph.candidates.takers, cut_graph.candidates.engines
    built: list[Built] = []
    for piece in pieces:
        before = known.get(frozenset(piece.subgraph.nodes))
        if before is not None:
            name = piece.subgraph.name
            built.append(replace(before, piece=piece, report=replace(before.report, name=name)))
            continue
        first = piece.subgraph.engine
        others = [label for label in engines if label != first]
        labels = [first] + [
            label
            for label in others
            if all(label in takers.get(node, ()) for node in piece.subgraph.nodes)
        ]
        built.append(build_piece(piece, engines, labels, values, settings))
    return built


def _module(
    cut_graph: _Cut, joined: Partition, built: Sequence[Built], request: LoweringRequest
) -> LoweredModule:
    slots = {one.piece.subgraph.name: one.slot for one in built if one.slot is not None}
    plan = plan_of([one.report for one in built], joined.eager_nodes, cut_graph.candidates.refusals)
    report = LoweringReport(
        plan.subgraphs, plan.eager_nodes, plan.refusals, plan.recommendations, request.notes
    )
    assembly = Assembly(cut_graph.core, joined, cut(cut_graph.core.module, joined), slots)
    return LoweredModule(assembly, report, fallback=request.fallback)
