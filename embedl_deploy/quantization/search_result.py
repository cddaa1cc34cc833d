"""What a search for precisions found, as data."""

from dataclasses import dataclass
from typing import Literal

from embedl_deploy.quantization.config import QuantConfig

BudgetKind = Literal["max_drop", "max_latency_ms", "max_bytes"]


@dataclass(frozen=True)
class Budget:
    """What a search must keep to."""

    kind: BudgetKind
    limit: float

    def __str__(self) -> str:
        return f"{self.kind}={self.limit:g}"


@dataclass(frozen=True)
class GroupChoice:
    """One group: what quantizing it costs and saves, and what became of it."""

    name: str
    """Path of the user's module."""

    kind: str
    nodes: tuple[str, ...]
    quantized: bool
    error: float
    """Σ |f_g(x) - f(x)|² / Σ |f(x)|²: what it alone adds to the output's squared error."""

    saving: float
    """In the unit of the budget: milliseconds, or bytes of parameters."""

    macs: int
    reason: str


@dataclass(frozen=True)
class Trial:
    """One choice that was built and checked."""

    quantized: tuple[str, ...]
    """Names of the groups."""

    bytes: int
    """Of all parameters as they are stored."""

    metric: float
    latency_ms: float | None = None
    """Measured where the budget is one of latency, or where savings are measured."""


@dataclass(frozen=True)
class FrontierPoint:
    """A choice that no other is predicted to beat in both saving and error."""

    quantized: int
    """How many groups."""

    saving: float
    error: float
    """Predicted, relative as in ``GroupChoice``."""

    trial: Trial | None = None
    """What was measured of it, if it was tried."""


@dataclass(frozen=True)
class PrecisionSearchResult:
    """The precisions found, and why these."""

    config: QuantConfig
    """For ``quantize``, of the same model."""

    budget: Budget
    groups: tuple[GroupChoice, ...]
    """In graph order."""

    fixed: dict[str, str]
    """Nodes that are quantized whatever is chosen, and why."""

    frontier: tuple[FrontierPoint, ...]
    """At most some fifty points, the largest saving first."""

    is_exact: bool
    """Whether the frontier is that of all subsets of the groups."""

    chosen: Trial
    """What was checked of the precisions found."""

    float_metric: float
    float_bytes: int
    trials: tuple[Trial, ...]
    """Everything that was checked, in the order it happened."""

    batches: int
    """How many the sensitivities come from."""

    float_latency_ms: float | None = None
    everything: Trial | None = None
    """All groups quantized, if that was measured."""

    @property
    def drop(self) -> float:
        """Returns how much of the metric was lost."""
        return self.float_metric - self.chosen.metric

    @property
    def quantized(self) -> tuple[str, ...]:
        """Returns the names of the quantized groups."""
        return tuple(group.name for group in self.groups if group.quantized)

    @property
    def in_float(self) -> tuple[str, ...]:
        """Returns the names of the groups left in float."""
        return tuple(group.name for group in self.groups if not group.quantized)
