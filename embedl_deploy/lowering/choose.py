"""Builds the subgraphs: by the first engine that can, or by the fastest that is right."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import EmbedlDeployError
from embedl_deploy.lowering.assembly import EngineSlot
from embedl_deploy.lowering.measure import Fidelity, fidelity_of, time_interleaved
from embedl_deploy.lowering.memory_format import format_of, in_format
from embedl_deploy.lowering.piece_spec import spec_of
from embedl_deploy.lowering.planning import describe_piece
from embedl_deploy.lowering.report import FailedBuild, Measurement, SubgraphReport
from embedl_deploy.lowering.signature import SymbolRange
from embedl_deploy.lowering.stitch import Piece
from embedl_deploy.lowering.units import is_quantization

Choose = Literal["first", "measure"]

_TOLERANCE = 0.1
_QUANTIZED_TOLERANCE = 0.25

Progress = Callable[[str], None]
"""Called with one line at the start of each long step."""

BUILD_ERRORS = (
    EmbedlDeployError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, ImportError, OSError, subprocess.SubprocessError,
)  # fmt: skip
"""What a build may raise: a compiler fails in many ways, and the next engine gets its turn."""


@dataclass(frozen=True)
class BuildSettings:
    """How subgraphs are built and judged."""

    choose: Choose = "first"
    tolerance: float | None = None
    """Largest relative error against the graph on the example inputs; None: 0.1, and 0.25 where
    the graph is quantized, since rounding to the next step may go either way."""

    cache_dir: Path | None = None
    time_budget_s: float | None = None
    """With ``choose="measure"``: seconds after which no further candidate is built."""

    progress: Progress | None = None
    symbols: Mapping[str, SymbolRange] = field(default_factory=dict[str, SymbolRange])
    """The declared ranges of the sizes that vary."""

    def say(self, line: str) -> None:
        if self.progress is not None:
            self.progress(line)


@dataclass(frozen=True)
class Built:
    """A subgraph, built or not."""

    piece: Piece
    slot: EngineSlot | None
    """None: no engine could; its nodes run eager."""

    report: SubgraphReport


@dataclass
class _Candidate:
    """One engine built for one subgraph."""

    label: str
    slot: EngineSlot
    seconds: float
    fidelity: Fidelity
    examples: tuple[object, ...] = field(repr=False)

    @property
    def engine(self) -> Engine:
        return self.slot.engine


def build_piece(
    piece: Piece,
    engines: Mapping[str, Engine],
    labels: Sequence[str],
    values: Mapping[Node, object],
    settings: BuildSettings,
) -> Built:
    """Returns ``piece`` built by one of the engines.

    Args:
        piece: The subgraph.
        engines: Prototypes by label; a fresh engine is made for each build.
        labels: The engines that take all of the piece, the preferred one first.
        values: What crosses the piece's boundary for the example inputs.
        settings: Whether the first that works is kept, or the fastest.
    """
    failures: list[FailedBuild] = []
    good = _built_candidates(piece, engines, labels, values, settings, failures)
    if settings.choose == "first":
        kept = next(good, None)
        measurements: tuple[Measurement, ...] = ()
    else:
        kept, measurements = _fastest(list(good), settings)
    report = describe_piece(piece, "", values)
    if kept is None:
        report = replace(report, engine="eager", description="eager", failures=tuple(failures))
        return Built(piece, None, report)
    report = replace(
        report,
        engine=kept.label,
        description=kept.engine.describe(),
        build_seconds=kept.seconds,
        kernels=dict(kept.engine.kernels),
        failures=tuple(failures),
        measurements=measurements,
    )
    return Built(piece, kept.slot, report)


def _built_candidates(
    piece: Piece,
    engines: Mapping[str, Engine],
    labels: Sequence[str],
    values: Mapping[Node, object],
    settings: BuildSettings,
    failures: list[FailedBuild],
) -> Iterator[_Candidate]:
    """Yields the candidates that build and compute the right thing."""
    examples = tuple(in_format(values[node]) for node in piece.inputs)
    references = [values[node] for node in piece.outputs]
    formats = tuple(format_of(value) for value in examples)
    tolerance = _tolerance(piece, settings)
    start = time.perf_counter()
    for position, label in enumerate(labels):
        spent = time.perf_counter() - start
        if position and settings.time_budget_s is not None and spent > settings.time_budget_s:
            failures.append(FailedBuild(label, f"the time budget was spent after {spent:.1f} s"))
            continue
        settings.say(f"building {piece.subgraph.name} with {label}")
        began = time.perf_counter()
        try:
            engine = _built_engine(engines[label], piece, examples, settings)
            with torch.no_grad():
                outputs = cast("Sequence[object]", engine.infer(*examples))
            fidelity = fidelity_of(list(outputs), references)
        except BUILD_ERRORS as error:
            failures.append(FailedBuild(label, _first_line(error)))
            continue
        if not fidelity.relative_error <= tolerance:
            failures.append(FailedBuild(label, _error_text(fidelity, tolerance)))
            engine.deactivate()
            continue
        seconds = time.perf_counter() - began
        slot = EngineSlot(engine, label, formats)
        yield _Candidate(label, slot, seconds, fidelity, examples)


def _tolerance(piece: Piece, settings: BuildSettings) -> float:
    if settings.tolerance is not None:
        return settings.tolerance
    quantized = any(is_quantization(node) for node in piece.subgraph.nodes)
    return _QUANTIZED_TOLERANCE if quantized else _TOLERANCE


def _built_engine(
    prototype: Engine, piece: Piece, examples: tuple[object, ...], settings: BuildSettings
) -> Engine:
    engine = type(prototype)(prototype.config)
    spec = spec_of(piece, settings.symbols)
    return engine.build(piece.module, spec, [examples], device_of(examples), settings.cache_dir)


def device_of(values: Sequence[object]) -> torch.device:
    """Returns the device of the first tensor, the CPU if there is none."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu")


def _fastest(
    candidates: list[_Candidate], settings: BuildSettings
) -> tuple[_Candidate | None, tuple[Measurement, ...]]:
    if not candidates:
        return None, ()
    settings.say(f"timing {', '.join(candidate.label for candidate in candidates)}")
    budget = 2.0 if settings.time_budget_s is None else settings.time_budget_s / 4
    with torch.no_grad():
        times = time_interleaved({c.label: _call(c) for c in candidates}, budget)
    best = min(candidates, key=lambda candidate: times[candidate.label].median_ms)
    measurements = tuple(
        Measurement(
            engine=candidate.label,
            median_ms=times[candidate.label].median_ms,
            spread_ms=times[candidate.label].spread_ms,
            relative_error=candidate.fidelity.relative_error,
            cosine=candidate.fidelity.cosine,
            kept=candidate is best,
            reason="" if candidate is best else f"slower than {best.label}",
        )
        for candidate in candidates
    )
    for candidate in candidates:
        if candidate is not best:
            candidate.engine.deactivate()
    return best, measurements


def _call(candidate: _Candidate) -> Callable[[], object]:
    def call() -> object:
        return candidate.engine.infer(*candidate.examples)

    return call


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _error_text(fidelity: Fidelity, tolerance: float) -> str:
    return (
        f"its outputs are off by {fidelity.relative_error:.2g} relative on the example inputs, "
        f"allowed {tolerance:.2g}"
    )
