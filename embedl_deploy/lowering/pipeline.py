"""From a flat graph to a lowered model: ask, cut, build, stitch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Signature as PythonSignature

from torch.fx import GraphModule, Node

from embedl_deploy.graph.record import record_of
from embedl_deploy.lowering.assembly import Assembly, cut
from embedl_deploy.lowering.builder import Builder
from embedl_deploy.lowering.candidates import (
    Assignment,
    Candidates,
    assigned,
    by_contestants,
    candidates_of,
)
from embedl_deploy.lowering.choose import Built, build_piece, start_builds, work_of
from embedl_deploy.lowering.core_graph import CoreGraph, core_of
from embedl_deploy.lowering.engine_choice import EngineChoice
from embedl_deploy.lowering.lowered_module import LoweredModule
from embedl_deploy.lowering.partitioning import Partition, partition, without
from embedl_deploy.lowering.planning import describe_piece, plan_of
from embedl_deploy.lowering.report import LoweringPlan, LoweringReport
from embedl_deploy.lowering.settings import BuildSettings, Terms
from embedl_deploy.lowering.simulation import hopeless, refuse_hopeless, refuse_simulated
from embedl_deploy.lowering.stitch import Piece, boundary_values
from embedl_deploy.lowering.whole import InParts, against_whole

_JOINING_ROUNDS = 4
"""Merged neighbours can be won by another engine, and merge again."""


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
        hopeless(cut_graph.partition, cut_graph.candidates),
        cut_graph.candidates.idle_pins,
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
    symbols = cut_graph.core.signature.symbols
    settings = replace(request.build, symbols=symbols, allow_simulated=request.allow_simulated)
    if not request.allow_simulated:
        refuse_hopeless(cut_graph.partition, cut_graph.candidates, settings.choose)
    with Builder(cut_graph.candidates.engines, settings.started()) as builder:
        built = _build_all(cut_graph, cut_graph.pieces, builder, {})
        failed = [one.piece.subgraph.name for one in built if not one.slot]
        parts = InParts(without(cut_graph.partition, failed), built)
        parts = _joined(cut_graph, parts, builder, _atomic(cut_graph.core, request.atomic))
        if settings.choose == "measure":
            parts = against_whole(cut_graph.core, cut_graph.candidates, parts, builder)
    if not request.allow_simulated:
        eager = parts.partition.eager_nodes
        refuse_simulated(eager, parts.built, cut_graph.candidates.refusals)
    return _module(cut_graph, parts, request)


def _joined(
    cut_graph: _Cut, parts: InParts, builder: Builder, atomic: Sequence[Sequence[Node]]
) -> InParts:
    """Merges neighbours that ended with the same engine, as long as what they make builds."""
    for _ in range(_JOINING_ROUNDS):
        if all(not one.slot or one.slot.label == one.piece.subgraph.engine for one in parts.built):
            break
        labels = {
            node: (one.slot.label,)
            for one in parts.built
            if one.slot is not None
            for node in one.piece.subgraph.nodes
        }
        joined = partition(cut_graph.core.module.graph, labels, atomic=atomic)
        known = {frozenset(one.piece.subgraph.nodes): one for one in parts.built}
        again = _build_all(cut_graph, cut(cut_graph.core.module, joined), builder, known)
        if any(one.slot is None for one in again):
            break
        failed = [one for one in parts.built if one.slot is None]
        parts = InParts(joined, (*again, *failed))
    return parts


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
    is_contest = request.build.choose == "measure"
    cuts = partition(
        core.module.graph,
        by_contestants(candidates.takers) if is_contest else candidates.takers,
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
    builder: Builder,
    known: Mapping[frozenset[Node], Built],
) -> list[Built]:
    """Builds every piece that is not known already, each on its own example inputs."""
    values = boundary_values(cut_graph.core.module, pieces, cut_graph.core.examples)
    new = [piece for piece in pieces if frozenset(piece.subgraph.nodes) not in known]
    todo = {
        piece.subgraph.name: (work_of(piece, values, builder), _labels(cut_graph, piece))
        for piece in new
    }
    for work, labels in todo.values():
        start_builds(work, labels, builder)
    built: list[Built] = []
    for piece in pieces:
        name = piece.subgraph.name
        before = known.get(frozenset(piece.subgraph.nodes))
        if before is None:
            built.append(build_piece(*todo[name], values, builder))
        else:
            built.append(replace(before, piece=piece, report=replace(before.report, name=name)))
    return built


def _labels(cut_graph: _Cut, piece: Piece) -> list[str]:
    """Returns the engines that take all of a piece, the one it was cut for first."""
    takers = cut_graph.candidates.takers
    order = sorted(cut_graph.candidates.engines, key=lambda label: label != piece.subgraph.engine)
    return [
        label
        for label in order
        if all(label in takers.get(node, ()) for node in piece.subgraph.nodes)
    ]


def _module(cut_graph: _Cut, parts: InParts, request: LoweringRequest) -> LoweredModule:
    cuts, built = parts.partition, parts.built
    slots = {one.piece.subgraph.name: one.slot for one in built if one.slot is not None}
    plan = plan_of(
        [one.report for one in built],
        cuts.eager_nodes,
        cut_graph.candidates.refusals,
        idle_pins=cut_graph.candidates.idle_pins,
    )
    report = LoweringReport(
        plan.subgraphs,
        plan.eager_nodes,
        plan.refusals,
        plan.recommendations,
        request.notes,
        parts.measurements,
    )
    assembly = Assembly(cut_graph.core, cuts, cut(cut_graph.core.module, cuts), slots)
    terms = Terms(request.fallback, request.build.tolerance, request.allow_simulated)
    return LoweredModule(assembly, report, terms)
