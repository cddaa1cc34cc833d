"""Builds the subgraphs: by the first engine that can, or by the fastest that is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from embedl_deploy.lowering.assembly import EngineSlot
from embedl_deploy.lowering.build_errors import BUILD_ERRORS
from embedl_deploy.lowering.builder import Builder, Work
from embedl_deploy.lowering.contest import Candidate, Contest, fastest, tolerance
from embedl_deploy.lowering.engine_archive import artifact_bytes
from embedl_deploy.lowering.engine_store import Choice
from embedl_deploy.lowering.fingerprint import digest, environment, input_digests
from embedl_deploy.lowering.literals import Json
from embedl_deploy.lowering.memory_format import in_format
from embedl_deploy.lowering.planning import describe_piece
from embedl_deploy.lowering.report import SubgraphReport
from embedl_deploy.lowering.stitch import Piece

__all__ = ["BUILD_ERRORS", "Built", "build_piece", "built_from", "start_builds", "work_of"]


@dataclass(frozen=True)
class Built:
    """A subgraph, built or not."""

    piece: Piece
    slot: EngineSlot | None
    """None: no engine could; its nodes run eager."""

    report: SubgraphReport


def work_of(piece: Piece, values: Mapping[Node, object], builder: Builder) -> Work:
    """Returns what there is to build for ``piece``, with what crosses its boundary."""
    examples = tuple(in_format(values[node]) for node in piece.inputs)
    return Work.of(piece, examples, builder.settings)


def start_builds(work: Work, labels: Sequence[str], builder: Builder) -> None:
    """Lets the executor begin with what ``build_piece`` will ask for."""
    if builder.settings.choose == "first":
        builder.start(work, labels[:1])
    elif _chosen_before(work, labels, builder) is None:
        builder.start(work, labels)


def build_piece(
    work: Work, labels: Sequence[str], values: Mapping[Node, object], builder: Builder
) -> Built:
    """Returns a subgraph built by one of the engines.

    Args:
        work: The subgraph and its example inputs.
        labels: The engines that take all of it, the preferred one first.
        values: What crosses the subgraph's boundary for the example inputs.
        builder: Where engines come from, and whether the first that works is kept, or the fastest.
    """
    contest = Contest(work, [values[node] for node in work.piece.outputs], builder)
    if builder.settings.choose == "first":
        kept = next(contest.candidates(labels), None)
        choice = Choice("", (), tuple(contest.failures))
    else:
        kept, choice = _winner(contest, labels)
    return built_from(work.piece, kept, choice, values)


def built_from(
    piece: Piece, kept: Candidate | None, choice: Choice, values: Mapping[Node, object]
) -> Built:
    """Returns ``piece`` with the engine that was kept for it, None if there is none."""
    report = describe_piece(piece, "", values)
    if kept is None:
        report = replace(report, engine="eager", description="eager", failures=choice.failures)
        return Built(piece, None, report)
    report = replace(
        report,
        engine=kept.label,
        description=kept.engine.describe(),
        build_seconds=kept.obtained.seconds,
        from_cache=kept.obtained.from_cache,
        artifact_bytes=artifact_bytes(kept.engine),
        kernels=dict(kept.engine.kernels),
        failures=choice.failures,
        measurements=choice.measurements,
    )
    return Built(piece, kept.slot, report)


def _winner(contest: Contest, labels: Sequence[str]) -> tuple[Candidate | None, Choice]:
    """Returns the fastest candidate, by an earlier run's choice if there is one."""
    work, builder = contest.work, contest.builder
    before = _chosen_before(work, labels, builder)
    if before is not None:
        kept = next(contest.candidates([before.label] if before.label else []), None)
        if kept is not None or not before.label:
            return kept, before
    kept, measurements = fastest(list(contest.candidates(labels)), builder.settings)
    choice = Choice(kept.label if kept else "", measurements, tuple(contest.failures))
    key = _choice_key(work, labels, builder)
    if key is not None and builder.store is not None and contest.is_lasting:
        builder.store.keep_choice(key, choice)
    return kept, choice


def _chosen_before(work: Work, labels: Sequence[str], builder: Builder) -> Choice | None:
    key = _choice_key(work, labels, builder)
    if key is None or builder.store is None:
        return None
    found = builder.store.choice(key)
    return found if found is not None and found.label in (*labels, "") else None


def _choice_key(work: Work, labels: Sequence[str], builder: Builder) -> str | None:
    """Returns what names the candidates, the inputs they are judged on, and the judge."""
    if work.content is None or builder.store is None:
        return None
    try:
        keys: Json = [[label, builder.engines[label].key()] for label in labels]
    except BUILD_ERRORS:  # a setting without a form as data
        return None
    around = environment({label: builder.engines[label] for label in labels})
    allowed = tolerance(work.piece, builder.settings)
    simulated = builder.settings.allow_simulated
    return digest([work.content, keys, around, input_digests(work.examples), allowed, simulated])
