"""A dry run of the rewriting stages: every match, open to veto, ready to be applied."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.macs import macs_of
from embedl_deploy.graph.record import record_of
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.records import PassRecord, SiteRecord, TransformationReport
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.stages import Stage, stages_of

Progress = Callable[[str, float], None]
"""Told the name of the step that runs and the share that is done, 0 to 1."""

SiteKey = tuple[str, str, str, tuple[str, ...]]
"""Stage, pattern, last node, consumed nodes."""


@dataclass
class TransformationPlan:
    """Every match that the stages found on a scratch copy of a model.

    Set ``match.apply = False`` to veto one; ``apply_transformation_plan`` then also leaves out,
    with that reason, every later match that reads what it would have made. A match that was
    refused because a larger one overlaps it can be wanted instead: veto the larger, set
    ``apply = True`` on the smaller.
    """

    model: GraphModule
    """The traced model, as it was before any rewrite."""

    matches: dict[Node, dict[type[Pattern], PatternMatch]]
    """By last node, then by pattern. Nodes of ``model`` where they exist there; a node that an
    earlier rewrite of the plan makes is the scratch graph's."""

    stages: tuple[Stage, ...]
    """What runs, in order."""

    backend: str | None = None
    """Name of the backend whose patterns these are."""

    records: tuple[PassRecord, ...] = ()
    """What each stage did on the scratch graph."""

    missing: tuple[str, ...] = ()
    """For a loaded plan: saved sites that the model no longer has, each with its reason."""

    scratch: TracedModule | None = field(default=None, repr=False)
    """The rewritten scratch graph, for the case that nothing is vetoed."""

    decided: dict[SiteKey, bool] = field(default_factory=dict[SiteKey, bool], repr=False)
    """What ``apply`` was for each site when the plan was made."""

    def sites(self) -> Iterator[PatternMatch]:
        """Yields the matches in the order in which they were settled."""
        for by_pattern in self.matches.values():
            yield from by_pattern.values()

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON, to be reviewed and replayed; see ``load``.

        Raises:
            OutputPathError: ``path`` cannot be written.
        """
        from embedl_deploy.rewriting.plan_file import save_plan

        save_plan(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: nn.Module,
        args: tuple[object, ...] | None = None,
        kwargs: Mapping[str, object] | None = None,
        *,
        patterns: Sequence[type[Pattern] | Pattern] | None = None,
        strict: bool = True,
    ) -> Self:
        """Returns the saved decisions as a plan for ``model``.

        Sites are found again by their structure, so retrained weights and changes elsewhere in
        the model do no harm.

        Args:
            path: A file that ``save`` wrote.
            model: A traced graph, or any model together with ``args``.
            args: Example inputs, for a model that is not traced yet.
            kwargs: Example keyword inputs.
            patterns: The patterns to look for; those named in the file if None.
            strict: Whether a saved site that no longer fits is an error.

        Raises:
            PlanError: The file is no plan, names an unknown pattern, or (strict) a site is gone.
        """
        from embedl_deploy.rewriting.plan_file import load_plan

        return load_plan(cls, Path(path), model, args, kwargs, patterns, strict=strict)


def site_key(match: PatternMatch | SiteRecord) -> SiteKey:
    """Returns what names a site in a plan and in the graphs it is replayed on."""
    if isinstance(match, SiteRecord):
        return (match.stage, match.pattern, match.site, match.nodes)
    names = tuple(node.name for node in match.nodes)
    return (match.stage, match.pattern.name, match.root.name, names)


def make_plan(
    model: GraphModule,
    patterns: Sequence[type[Pattern] | Pattern],
    backend: str | None = None,
    *,
    kind: type[TransformationPlan] = TransformationPlan,
) -> TransformationPlan:
    """Runs the stages of ``patterns`` on a scratch copy of a traced graph and keeps every match.

    The graph itself is not changed; the scratch copy shares its tensors.
    """
    scratch = structural_copy(model, deferred=True)
    stages = stages_of(patterns)
    found: list[PatternMatch] = []
    records = tuple(_run_stage(scratch, stage, found) for stage in stages)
    by_name = {node.name: node for node in model.graph.nodes}
    matches: dict[Node, dict[type[Pattern], PatternMatch]] = {}
    for match in found:
        node = by_name.get(match.root.name, match.root)
        matches.setdefault(node, {})[type(match.pattern)] = match
    plan = kind(model, matches, stages, backend, records, scratch=scratch)
    plan.decided = {site_key(match): match.apply for match in found}
    return plan


def apply_plan(plan: TransformationPlan) -> tuple[TracedModule, TransformationReport]:
    """Returns the rewritten copy of ``plan.model`` and the report of what was done."""
    unchanged = all(plan.decided.get(site_key(match)) == match.apply for match in plan.sites())
    if plan.scratch is not None and unchanged:
        result, records = plan.scratch, plan.records
        plan.scratch = None
    else:
        result = structural_copy(plan.model, deferred=True)
        records = _replay(plan, result)
    record = record_of(result)
    record.backend = plan.backend or record.backend
    report = TransformationReport(
        passes=records,
        backend=record.backend,
        tracer=record.tracer,
        notes=tuple(record.notes),
        key_map=dict(record.key_map),
        coverage=_coverage(plan.model, records),
    )
    record.report = report
    return result.finish(), report


def _run_stage(scratch: TracedModule, stage: Stage, found: list[PatternMatch]) -> PassRecord:
    return apply_patterns(
        scratch,
        stage.patterns,
        stage.name,
        until_fixpoint=stage.until_fixpoint,
        matches=found,
    )


def _replay(plan: TransformationPlan, result: TracedModule) -> tuple[PassRecord, ...]:
    wanted = {site_key(match): match for match in plan.sites()}
    reached: set[SiteKey] = set()

    def gate(match: PatternMatch) -> Refusal | None:
        key = site_key(match)
        planned = wanted.get(key)
        reached.add(key)
        if planned is None:
            return Refusal("the plan does not hold this site", match.root)
        if planned.apply:
            return None
        return planned.refusal or Refusal("vetoed in the plan", match.root)

    records = [
        apply_patterns(
            result, stage.patterns, stage.name, until_fixpoint=stage.until_fixpoint, gate=gate
        )
        for stage in plan.stages
    ]
    lost = [
        match for key, match in wanted.items() if match.apply and key not in reached
    ]
    return tuple(_with_lost(record, lost, plan) for record in records)


def _with_lost(
    record: PassRecord, lost: list[PatternMatch], plan: TransformationPlan
) -> PassRecord:
    """Adds to a stage's record the planned sites that a veto upstream made impossible."""
    vetoed = [
        site
        for site, apply in plan.decided.items()
        if apply and not _match_of(plan, site).apply
    ]
    reason = "it reads what a vetoed match would have made"
    if vetoed:
        reason += ": " + ", ".join(f"{site[1]} at %{site[2]}" for site in vetoed[:3])
    extra = tuple(
        SiteRecord(*site_key(match)[:3], site_key(match)[3], "", None, reason=reason)
        for match in lost
        if match.stage == record.name
    )
    return replace(record, refused=(*record.refused, *extra))


def _match_of(plan: TransformationPlan, key: SiteKey) -> PatternMatch:
    return next(match for match in plan.sites() if site_key(match) == key)


def _coverage(model: GraphModule, records: tuple[PassRecord, ...]) -> dict[str, float]:
    """Returns the share of the model's multiply-accumulates that each stage's matches consume."""
    macs = {node.name: macs_of(node) for node in model.graph.nodes}
    total = sum(macs.values())
    if total == 0:
        return {}
    made: dict[str, int] = {}
    shares: dict[str, float] = {}
    for record in records:
        covered = 0
        for site in record.applied:
            here = sum(macs.get(name, made.get(name, 0)) for name in site.nodes)
            covered += here
            if site.made is not None and site.made not in macs:
                made[site.made] = here
        shares[record.name] = covered / total
    return shares
