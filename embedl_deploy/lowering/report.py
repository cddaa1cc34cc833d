"""What lowering did and did not do, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from threading import Lock


@dataclass(frozen=True)
class NodeRefusal:
    """An engine left one node alone."""

    engine: str
    node: str
    operation: str
    """What the node runs."""

    reason: str
    source: str | None
    """``file:line`` of the user's code, where tracing recorded it."""


@dataclass(frozen=True)
class BoundaryValue:
    """A tensor that crosses from one subgraph into another, or into eager code."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    bytes: int
    """Size with the example inputs."""


@dataclass(frozen=True)
class FailedBuild:
    """An engine that was tried for a subgraph and could not be used."""

    engine: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """What one candidate took and how far it was off, with ``choose="measure"``."""

    engine: str
    median_ms: float
    spread_ms: float
    """90th minus 10th percentile."""

    relative_error: float
    """‖candidate - reference‖ / ‖reference‖ over all outputs, the largest."""

    cosine: float
    """Cosine between candidate and reference, the smallest over all outputs."""

    kept: bool
    reason: str = ""
    """Why it was dropped, empty if it was not."""

    build_seconds: float = 0.0
    artifact_bytes: int | None = None
    """Bytes of files and tensors that saving it takes; None if it cannot be saved."""

    resident_bytes: int | None = None
    """By how much the process grew when it was loaded, memory that earlier builds gave back and
    that was used again not counted; None where it is compiled just in time, or the system does
    not tell."""


@dataclass(frozen=True)
class SubgraphReport:
    """One subgraph and the engine that runs it."""

    name: str
    engine: str
    """The engine's label, ``"eager"`` if every build failed."""

    description: str
    """The engine with the settings that differ from its defaults."""

    nodes: tuple[str, ...]
    inputs: tuple[BoundaryValue, ...]
    outputs: tuple[BoundaryValue, ...]
    build_seconds: float = 0.0
    """Seconds to build and check it, or to load and check it if ``from_cache``."""

    from_cache: bool = False
    """Whether the engine was built by an earlier run, and only loaded."""

    artifact_bytes: int | None = None
    """Bytes of files and tensors that saving the engine takes; None if it cannot be saved."""

    kernels: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many kernels of each kind one call runs, where the engine counts them."""

    failures: tuple[FailedBuild, ...] = ()
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class LoweringPlan:
    """What ``lower`` would do; nothing was built."""

    subgraphs: tuple[SubgraphReport, ...]
    eager_nodes: tuple[str, ...]
    """Nodes that no engine takes, in the order in which they run."""

    refusals: tuple[NodeRefusal, ...]
    recommendations: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """Share of the graph's nodes that an engine runs, from 0 to 1."""
        covered = sum(len(subgraph.nodes) for subgraph in self.subgraphs)
        total = covered + len(self.eager_nodes)
        return covered / total if total else 1.0

    @property
    def boundary_bytes(self) -> int:
        """Bytes that cross into and out of subgraphs per call, with the example inputs."""
        return sum(
            value.bytes
            for subgraph in self.subgraphs
            for value in (*subgraph.inputs, *subgraph.outputs)
        )

    def to_dict(self) -> dict[str, object]:
        """Returns the plan as JSON values."""
        return {**asdict(self), "coverage": self.coverage, "boundary_bytes": self.boundary_bytes}


class FallbackCounts:
    """How often a subgraph ran eager although an engine was built for it, and why."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, subgraph: str, reason: str) -> bool:
        """Counts one; tells whether it is the first of its kind."""
        with self._lock:
            count = self._counts.get((subgraph, reason), 0)
            self._counts[subgraph, reason] = count + 1
            return count == 0

    def counts(self) -> dict[tuple[str, str], int]:
        """Returns a copy of the counts by (subgraph, reason)."""
        with self._lock:
            return dict(self._counts)


@dataclass(frozen=True)
class LoweringReport(LoweringPlan):
    """What ``lower`` did."""

    notes: tuple[str, ...] = ()
    whole: tuple[Measurement, ...] = ()
    """With ``choose="measure"``: the graph in parts against each engine that takes all of it."""

    fallback_counts: FallbackCounts = field(default_factory=FallbackCounts, compare=False)

    @property
    def fallbacks(self) -> dict[tuple[str, str], int]:
        """Returns how often each subgraph ran eager so far, by (subgraph, reason)."""
        return self.fallback_counts.counts()

    @property
    def fallback_count(self) -> int:
        """Returns how many calls of subgraphs ran eager so far."""
        return sum(self.fallbacks.values())

    @property
    def engines(self) -> dict[str, str]:
        """Returns the engine of each subgraph by name."""
        return {subgraph.name: subgraph.engine for subgraph in self.subgraphs}

    @property
    def build_seconds(self) -> float:
        """Seconds spent in builds."""
        return sum(subgraph.build_seconds for subgraph in self.subgraphs)

    def to_dict(self) -> dict[str, object]:
        values = {name: getattr(self, name) for name in ("eager_nodes", "recommendations", "notes")}
        return {
            **values,
            "whole": [asdict(measurement) for measurement in self.whole],
            "subgraphs": [asdict(subgraph) for subgraph in self.subgraphs],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "coverage": self.coverage,
            "boundary_bytes": self.boundary_bytes,
            "fallbacks": [
                {"subgraph": name, "reason": reason, "calls": calls}
                for (name, reason), calls in self.fallbacks.items()
            ],
        }
