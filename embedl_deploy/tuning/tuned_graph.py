"""What tuning one graph came to: the engine that was kept, and the table of all candidates."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from embedl_deploy.lowering import LoweredModule
from embedl_deploy.tuning.graph_spec import GraphSpec


@dataclass(frozen=True)
class Latency:
    """What the calls of one candidate took."""

    median_ms: float
    low_ms: float
    """The median lies between ``low_ms`` and ``high_ms`` with 95 % confidence."""

    high_ms: float
    calls: int


@dataclass(frozen=True)
class OutputError:
    """How far one output is from eager, over all samples checked."""

    output: int
    """Its place among the outputs, from the left."""

    relative_error: float
    """‖candidate - eager‖ / ‖eager‖, the largest."""

    cosine: float
    """The smallest, from -1 to 1."""


@dataclass(frozen=True)
class CandidateReport:
    """One candidate for one graph."""

    label: str
    precision: str
    reason: str = ""
    """Why it was not kept; empty for the one that was."""

    kept: bool = False
    build_seconds: float = 0.0
    outputs: tuple[OutputError, ...] = ()
    checked: int = 0
    """Samples whose outputs were compared, the ends of declared ranges among them."""

    latency: Latency | None = None
    speedup: float | None = None
    """Ratio of medians to eager, measured in turns."""

    throughput: float | None = None
    """Items per second at ``batch_size``, where batch sizes were searched."""

    batch_size: int | None = None
    notes: tuple[str, ...] = ()

    def dropped(self, reason: str) -> "CandidateReport":
        """Returns the same with why it is not kept."""
        return replace(self, reason=reason, kept=False)


@dataclass(frozen=True)
class TunedGraph:
    """One graph: what runs it and why."""

    spec: GraphSpec
    model: LoweredModule | None
    """None: it stays eager."""

    candidates: tuple[CandidateReport, ...] = ()
    decision: str = ""
    """One sentence."""

    eager: Latency | None = None

    def to_dict(self) -> dict[str, object]:
        """Returns everything but the model as JSON values."""
        return {
            "graph": self.spec.to_dict(),
            "decision": self.decision,
            "eager": None if self.eager is None else asdict(self.eager),
            "candidates": [asdict(candidate) for candidate in self.candidates],
        }


@dataclass(frozen=True)
class TuningReport:
    """All graphs of one module."""

    name: str
    graphs: tuple[TunedGraph, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Returns the report as JSON values."""
        return {
            "module": self.name,
            "notes": list(self.notes),
            "graphs": [graph.to_dict() for graph in self.graphs],
        }

    def describe(self) -> str:
        """Returns a table for people."""
        lines: list[str] = [f"{self.name}: {note}" for note in self.notes]
        for graph in self.graphs:
            lines.append(f"{self.name}({graph.spec.describe()}): {graph.decision}")
            rows = [_row(candidate) for candidate in graph.candidates]
            lines += [f"  {line}" for line in aligned([_HEADER, *rows])] if rows else []
        return "\n".join(lines)


_HEADER = ("candidate", "precision", "median ms", "speedup", "error", "cosine", "verdict")


def _row(candidate: CandidateReport) -> tuple[str, ...]:
    worst = max((output.relative_error for output in candidate.outputs), default=None)
    least = min((output.cosine for output in candidate.outputs), default=None)
    return (
        candidate.label,
        candidate.precision,
        "" if candidate.latency is None else f"{candidate.latency.median_ms:.3f}",
        "" if candidate.speedup is None else f"{candidate.speedup:.2f}",
        "" if worst is None else f"{worst:.2g}",
        "" if least is None else f"{least:.5f}",
        "kept" if candidate.kept else candidate.reason,
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of cells as lines whose columns line up."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
