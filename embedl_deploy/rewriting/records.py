"""What a pass did and what it declined to do, as data."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.fx import GraphModule

from embedl_deploy.errors import PreconditionError
from embedl_deploy.graph.nodes import module_path, source_line
from embedl_deploy.graph.record import record_of
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal


@dataclass(frozen=True)
class SiteRecord:
    """One match: where it stood and what became of it."""

    stage: str
    """The stage that found it."""

    pattern: str
    """Kebab-case name of the pattern."""

    site: str
    """Name of the match's last node, after the path of the condition or loop that holds it."""

    nodes: tuple[str, ...]
    """Names of all consumed nodes, in graph order."""

    module: str
    """Path of the user's module in which the last node was made."""

    source: str | None
    """``file:line`` of the user's code, None if tracing did not record it."""

    reason: str | None = None
    """Why it was left alone; None if it was rewritten."""

    made: str | None = None
    """Name of the node that took over, None if nothing was rewritten."""

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        if self.reason is None:
            return f"{self.pattern} at %{self.site}: made %{self.made}{where}"
        return f"{self.pattern} at %{self.site}: left alone, {self.reason}{where}"


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to a graph."""

    name: str
    """Name of the pass."""

    applied: tuple[SiteRecord, ...] = ()
    """The matches that were rewritten, in the order it happened."""

    refused: tuple[SiteRecord, ...] = ()
    """The matches that were left alone, each with its reason."""

    seconds: float = 0.0
    """How long the pass took."""

    notes: tuple[str, ...] = ()
    """What else a reader should know, a sentence each."""


@dataclass
class TransformationReport:
    """What ``transform`` (or another stage) did to a model.

    ``applied``, ``skipped``, ``applied_count``, ``skipped_count`` and ``total_count`` can be read
    as attributes and as items.
    """

    passes: tuple[PassRecord, ...] = ()
    """One record per pass, in the order they ran."""

    backend: str | None = None
    """Name of the backend whose patterns ran."""

    tracer: str = "export"
    """Which tracer made the graph."""

    notes: tuple[str, ...] = ()
    """What else a reader should know, a sentence each."""

    key_map: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Keys of the original state dict that were replaced, and by which."""

    coverage: dict[str, float] = field(default_factory=dict[str, float])
    """Share of the model's multiply-accumulates that each stage's matches cover, 0 to 1."""

    @property
    def applied(self) -> list[str]:
        """Names of the patterns that were applied, one entry per site."""
        return [record.pattern for record in self.applied_sites()]

    @property
    def skipped(self) -> list[str]:
        """Names of the patterns that fitted and were left alone, one entry per site."""
        return [record.pattern for record in self.refusals()]

    @property
    def applied_count(self) -> int:
        """How many matches were rewritten."""
        return len(self.applied)

    @property
    def skipped_count(self) -> int:
        """How many matches were left alone."""
        return len(self.skipped)

    @property
    def total_count(self) -> int:
        """How many matches there were."""
        return self.applied_count + self.skipped_count

    def applied_sites(self) -> Iterator[SiteRecord]:
        """Yields a record for each match that was rewritten, in order."""
        for record in self.passes:
            yield from record.applied

    def refusals(self) -> Iterator[SiteRecord]:
        """Yields a record for each match that was left alone, with its reason."""
        for record in self.passes:
            yield from record.refused

    def counts(self) -> dict[str, int]:
        """Returns how often each pattern was applied, most often first."""
        return dict(Counter(self.applied).most_common())

    def __getitem__(self, name: str) -> object:
        if name not in _ITEMS:
            raise KeyError(f"a report has the items {', '.join(_ITEMS)}, got {name!r}")
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(_ITEMS)

    def keys(self) -> tuple[str, ...]:
        """Returns the names of the items, so that ``dict(report)`` works."""
        return _ITEMS

    def __str__(self) -> str:
        lines = [f"{self.applied_count} applied, {self.skipped_count} left alone"]
        lines += [f"  {count:4d} × {name}" for name, count in self.counts().items()]
        lines += [f"  {record}" for record in self.refusals()]
        return "\n".join(lines)


def report_of(model: nn.Module) -> TransformationReport:
    """Returns the report of everything that was done to ``model`` so far.

    Raises:
        PreconditionError: ``model`` is no result of ``transform`` or a later stage.
    """
    report = record_of(model).report if isinstance(model, GraphModule) else None
    if not isinstance(report, TransformationReport):
        raise PreconditionError(
            f"report_of needs a result of transform() or quantize(), got {type(model).__name__} "
            "without a report"
        )
    return report


_ITEMS = ("applied", "skipped", "applied_count", "skipped_count", "total_count")


def site_record(
    match: PatternMatch, *, refusal: Refusal | None = None, made: str | None = None
) -> SiteRecord:
    """Returns the record of a match; its nodes may be erased by then."""
    return SiteRecord(
        stage=match.stage,
        pattern=match.pattern.name,
        site=f"{match.scope}{match.root.name}",
        nodes=tuple(f"{match.scope}{node.name}" for node in match.nodes),
        module=module_path(match.root),
        source=source_line(match.root),
        reason=None if refusal is None else refusal.reason,
        made=made,
    )
