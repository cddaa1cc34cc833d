"""Candidates for one subgraph: built, checked against the graph, and timed against each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch.fx import Node

from embedl_deploy.engines.engine import Engine
from embedl_deploy.lowering.assembly import EngineSlot
from embedl_deploy.lowering.build_errors import BUILD_ERRORS, PASSING_ERRORS, error_text
from embedl_deploy.lowering.builder import SPENT, Builder, Obtained, Work
from embedl_deploy.lowering.engine_archive import artifact_bytes
from embedl_deploy.lowering.measure import CallTime, Fidelity, fidelity_of, time_interleaved
from embedl_deploy.lowering.memory_format import format_of
from embedl_deploy.lowering.report import FailedBuild, Measurement
from embedl_deploy.lowering.settings import BuildSettings
from embedl_deploy.lowering.stitch import Piece
from embedl_deploy.lowering.units import is_quantization

_TOLERANCE = 0.1
_QUANTIZED_TOLERANCE = 0.25
_TIMING_S = 8.0
"""Most seconds that candidates which are close to each other are timed."""


@dataclass
class Candidate:
    """One engine built for one subgraph, that computes the right thing."""

    label: str
    slot: EngineSlot
    fidelity: Fidelity
    obtained: Obtained
    examples: tuple[object, ...] = field(repr=False)

    @property
    def engine(self) -> Engine:
        return self.slot.engine

    def call(self) -> object:
        """Runs the engine on the examples."""
        return self.engine.infer(*self.examples)


@dataclass
class Contest:
    """The builds for one subgraph, and why those that failed did."""

    work: Work
    references: Sequence[object]
    """What the graph computes for the examples."""

    builder: Builder
    failures: list[FailedBuild] = field(default_factory=list[FailedBuild])
    is_lasting: bool = True
    """Whether another run would come to the same failures."""

    @property
    def settings(self) -> BuildSettings:
        return self.builder.settings

    def candidates(self, labels: Sequence[str]) -> Iterator[Candidate]:
        """Yields the candidates that build and compute the right thing."""
        found = False
        for label in labels:
            if self._simulates(label):
                self._fail(label, "it would run quantization as float arithmetic")
                continue
            obtained = self.builder.engine(self.work, label, unless_spent=found)
            if obtained.engine is None:
                self._fail(label, obtained.failure, is_passing=obtained.is_passing)
                continue
            candidate = self._checked(label, obtained.engine, obtained)
            if candidate is not None:
                found = True
                yield candidate

    def _checked(self, label: str, engine: Engine, obtained: Obtained) -> Candidate | None:
        try:
            with torch.no_grad():
                outputs = cast("Sequence[object]", engine.infer(*self.work.examples))
            fidelity = fidelity_of(list(outputs), self.references)
        except BUILD_ERRORS as error:
            self._fail(label, error_text(error), is_passing=isinstance(error, PASSING_ERRORS))
            engine.deactivate()
            return None
        allowed = tolerance(self.work.piece, self.settings)
        if not fidelity.relative_error <= allowed:
            self._fail(label, _error_text(fidelity, allowed))
            engine.deactivate()
            return None
        formats = tuple(format_of(value) for value in self.work.examples)
        slot = EngineSlot(engine, label, formats)
        return Candidate(label, slot, fidelity, obtained, self.work.examples)

    def _simulates(self, label: str) -> bool:
        is_eager = self.builder.engines[label].name == "eager"
        return is_eager and not self.settings.allow_simulated and is_quantized(self.work.piece)

    def _fail(self, label: str, reason: str, *, is_passing: bool = False) -> None:
        self.failures.append(FailedBuild(label, reason))
        self.is_lasting = self.is_lasting and not is_passing and reason != SPENT


def tolerance(piece: Piece, settings: BuildSettings) -> float:
    """Returns the largest relative error that an engine for ``piece`` may have."""
    if settings.tolerance is not None:
        return settings.tolerance
    return _QUANTIZED_TOLERANCE if is_quantized(piece) else _TOLERANCE


def is_quantized(piece: Piece) -> bool:
    """Tells whether the subgraph quantizes or dequantizes."""
    nodes: Sequence[Node] = piece.subgraph.nodes
    return any(is_quantization(node) for node in nodes)


def fastest(
    candidates: Sequence[Candidate], settings: BuildSettings
) -> tuple[Candidate | None, tuple[Measurement, ...]]:
    """Returns the candidate whose median call is shortest, and what each took."""
    if not candidates:
        return None, ()
    times = call_times({c.label: c.call for c in candidates}, settings)
    best = min(candidates, key=lambda candidate: times[candidate.label].median_ms)
    measurements = tuple(
        measured(candidate, times[candidate.label], best.label) for candidate in candidates
    )
    for candidate in candidates:
        if candidate is not best:
            candidate.engine.deactivate()
    return best, measurements


def call_times(
    calls: Mapping[str, Callable[[], object]], settings: BuildSettings
) -> dict[str, CallTime]:
    """Times calls in turns, for a quarter of the time budget at most."""
    settings.say(f"timing {', '.join(calls)}")
    spare = settings.time_budget_s
    budget = _TIMING_S if spare is None else min(_TIMING_S, spare / 4)
    with torch.no_grad():
        return time_interleaved(calls, budget)


def measured(candidate: Candidate, taken: CallTime, best: str) -> Measurement:
    """Returns a candidate's figures."""
    return Measurement(
        engine=candidate.label,
        median_ms=taken.median_ms,
        spread_ms=taken.spread_ms,
        relative_error=candidate.fidelity.relative_error,
        cosine=candidate.fidelity.cosine,
        kept=candidate.label == best,
        reason="" if candidate.label == best else f"slower than {best}",
        build_seconds=candidate.obtained.seconds,
        artifact_bytes=artifact_bytes(candidate.engine),
        resident_bytes=candidate.obtained.resident_bytes,
    )


def _error_text(fidelity: Fidelity, allowed: float) -> str:
    return (
        f"its outputs are off by {fidelity.relative_error:.2g} relative on the example inputs, "
        f"allowed {allowed:.2g}"
    )
