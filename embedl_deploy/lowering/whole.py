"""Compares a graph run in parts with each engine that takes all of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node

from embedl_deploy.lowering.assembly import Assembly, cut, is_whole
from embedl_deploy.lowering.build_errors import BUILD_ERRORS
from embedl_deploy.lowering.builder import Builder, Work
from embedl_deploy.lowering.candidates import Candidates
from embedl_deploy.lowering.choose import Built, built_from, work_of
from embedl_deploy.lowering.contest import (
    Candidate,
    Contest,
    call_times,
    measured,
    tolerance,
)
from embedl_deploy.lowering.core_graph import CoreGraph
from embedl_deploy.lowering.engine_store import Choice
from embedl_deploy.lowering.fingerprint import digest, environment, input_digests, input_forms
from embedl_deploy.lowering.literals import Json
from embedl_deploy.lowering.measure import CallTime, fidelity_of
from embedl_deploy.lowering.partitioning import Partition, partition
from embedl_deploy.lowering.report import FallbackCounts, Measurement
from embedl_deploy.lowering.stitch import boundary_values


@dataclass(frozen=True)
class InParts:
    """A graph cut into subgraphs, each built."""

    partition: Partition
    built: Sequence[Built]
    """Also those subgraphs that no engine could build; their nodes run eager."""

    measurements: tuple[Measurement, ...] = ()
    """The parts together against each engine that takes all of the graph."""

    @property
    def label(self) -> str:
        """The engines, as a report names them."""
        used = dict.fromkeys(one.slot.label for one in self.built if one.slot is not None)
        if self.partition.eager_nodes:
            used["eager"] = None
        count = len(self.partition.steps)
        return f"{' + '.join(used)} in {count} parts"


def against_whole(
    core: CoreGraph, candidates: Candidates, parts: InParts, builder: Builder
) -> InParts:
    """Returns the parts, or one engine for the whole graph where that is faster.

    Each part was won on its own; what crossing from one to the next costs shows only here.
    """
    cuts = _whole_cuts(core, candidates)
    if is_whole(core.module, parts.partition) or not cuts:
        return parts
    first = next(iter(cuts.values()))
    pieces = cut(core.module, first)
    values = boundary_values(core.module, pieces, core.examples)
    work = work_of(pieces[0], values, builder)
    contest = Contest(work, [values[node] for node in pieces[0].outputs], builder)
    key = _key(work, parts, list(cuts), builder)
    before = builder.store.choice(key) if key is not None and builder.store is not None else None
    if before is not None and before.label == parts.label:
        return InParts(parts.partition, parts.built, before.measurements)
    wanted = list(cuts) if before is None or before.label not in cuts else [before.label]
    builder.start(work, wanted)
    found = list(contest.candidates(wanted))
    if before is None or not found:
        best, choice = _raced(core, parts, found, contest)
        if key is not None and builder.store is not None and contest.is_lasting:
            builder.store.keep_choice(key, choice)
    else:
        best, choice = found[0], before
    if best is None:
        return InParts(parts.partition, parts.built, choice.measurements)
    whole = cuts[best.label]
    built = built_from(cut(core.module, whole)[0], best, choice, values)
    return InParts(whole, [built], choice.measurements)


def _whole_cuts(core: CoreGraph, candidates: Candidates) -> dict[str, Partition]:
    """Returns for each engine that takes all of the graph the partition of one subgraph."""
    found: dict[str, Partition] = {}
    for label in candidates.engines:
        takers: dict[Node, tuple[str, ...]] = {
            node: (label,) if label in taken else () for node, taken in candidates.takers.items()
        }
        if not all(takers.values()):
            continue
        whole = partition(core.module.graph, takers)
        if is_whole(core.module, whole):
            found[label] = whole
    return found


def _raced(
    core: CoreGraph, parts: InParts, found: Sequence[Candidate], contest: Contest
) -> tuple[Candidate | None, Choice]:
    """Times the parts together and each candidate; None: the parts are fastest."""
    together = _call_of(core, parts)
    calls = {parts.label: together, **{c.label: c.call for c in found}}
    times = call_times(calls, contest.settings)
    best = min(times, key=lambda name: times[name].median_ms)
    own = _parts_measured(parts, times[parts.label], best, together, contest)
    measurements = (own, *(measured(c, times[c.label], best) for c in found))
    winner = next((c for c in found if c.label == best), None)
    for candidate in found:
        if candidate is not winner:
            candidate.engine.deactivate()
    return winner, Choice(best, measurements, tuple(contest.failures))


def _call_of(core: CoreGraph, parts: InParts) -> Callable[[], Sequence[object]]:
    slots = {one.piece.subgraph.name: one.slot for one in parts.built if one.slot is not None}
    assembly = Assembly(core, parts.partition, cut(core.module, parts.partition), slots)
    run, _ = assembly.runner(FallbackCounts(), True)
    return lambda: run(*core.examples)


def _parts_measured(
    parts: InParts,
    taken: CallTime,
    best: str,
    call: Callable[[], Sequence[object]],
    contest: Contest,
) -> Measurement:
    fidelity = fidelity_of(list(call()), contest.references)
    return Measurement(
        engine=parts.label,
        median_ms=taken.median_ms,
        spread_ms=taken.spread_ms,
        relative_error=fidelity.relative_error,
        cosine=fidelity.cosine,
        kept=best == parts.label,
        reason="" if best == parts.label else f"slower than {best}",
        build_seconds=sum(one.report.build_seconds for one in parts.built),
        artifact_bytes=sum(one.report.artifact_bytes or 0 for one in parts.built),
    )


def _key(work: Work, parts: InParts, labels: Sequence[str], builder: Builder) -> str | None:
    """Returns what names the parts, what they are compared with, the inputs, and the judge."""
    if work.content is None or builder.store is None:
        return None
    used = [(one.piece, one.slot) for one in parts.built if one.slot is not None]
    try:
        keys: Json = [[label, builder.engines[label].key()] for label in labels]
        built: Json = [
            [slot.label, slot.engine.key(), [node.name for node in piece.subgraph.nodes]]
            for piece, slot in used
        ]
    except BUILD_ERRORS:  # a setting without a form as data
        return None
    inputs: Json = [input_forms(work.examples), input_digests(work.examples)]
    allowed = tolerance(work.piece, builder.settings)
    judge: Json = [allowed, builder.settings.allow_simulated, environment(builder.engines)]
    return digest(["whole", work.content, keys, built, inputs, judge])
