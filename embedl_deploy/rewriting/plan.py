"""A dry run of the rewriting stages: every match, open to veto, ready to be applied."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.macs import macs_of
from embedl_deploy.graph.provenance import stable_name
from embedl_deploy.graph.record import record_of
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.rewriting.application import Gate, apply_patterns, graphs_of
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.records import PassRecord, TransformationReport, site_record
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.stages import Stage, stages_of
from embedl_deploy.rewriting.verify import ROLLED_BACK, require_choice

Progress = Callable[[str, float], None]
"""Told the name of the step that runs and the share that is done, 0 to 1."""

_GONE = "the saved plan holds {}, which the model no longer has"

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

    decided: dict[PatternMatch, bool] = field(default_factory=dict[PatternMatch, bool], repr=False)
    """What ``apply`` was for each match when the plan was made."""

    gate: Gate | None = field(default=None, repr=False)
    """What was asked before a match was planned."""

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


def site_key(match: PatternMatch) -> SiteKey:
    """Returns what names a site in a plan and in the graphs it is replayed on."""
    nodes = tuple(match.scope + stable_name(node) for node in match.nodes)
    return (match.stage, match.pattern.name, match.scope + stable_name(match.root), nodes)


def make_plan(
    model: GraphModule,
    patterns: Sequence[type[Pattern] | Pattern],
    backend: str | None = None,
    *,
    kind: type[TransformationPlan] = TransformationPlan,
    careful: bool = False,
    gate: Gate | None = None,
) -> TransformationPlan:
    """Runs the stages of ``patterns`` on a scratch copy of a traced graph and keeps every match.

    The graph itself is not changed; the scratch copy shares its tensors. With ``careful`` these
    are copied before each rewrite, so that a pattern that changes them can be refused. ``gate``
    is asked before each match is applied.
    """
    scratch = structural_copy(model, deferred=True)
    stages = stages_of(patterns)
    found: list[PatternMatch] = []
    records = tuple(_run_stage(scratch, stage, found, gate, careful=careful) for stage in stages)
    own_nodes = {
        scope + stable_name(node): node
        for scope, part in graphs_of(model)
        for node in part.graph.nodes
    }
    matches: dict[Node, dict[type[Pattern], PatternMatch]] = {}
    for match in found:
        node = own_nodes.get(match.scope + stable_name(match.root), match.root)
        by_pattern = matches.setdefault(node, {})
        known = by_pattern.get(type(match.pattern))
        # Of several matches of one pattern at one node, the one that was applied is shown.
        if known is None or not known.apply:
            by_pattern[type(match.pattern)] = match
    plan = kind(model, matches, stages, backend, records, scratch=scratch, gate=gate)
    plan.decided = {match: match.apply for match in plan.sites()}
    return plan


def apply_plan(
    plan: TransformationPlan,
    *,
    verify: bool | Literal["raise"] = False,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    deferred: bool = False,
) -> tuple[TracedModule, TransformationReport]:
    """Returns the rewritten copy of ``plan.model`` and the report of what was done.

    With ``verify`` every site is checked, and the whole model on ``args`` and ``kwargs`` (random
    inputs if neither is given) after each stage; see ``verified.apply_verified``. With ``deferred``
    the copy's Python code is not written yet, see ``TracedModule.finish``.
    """
    require_choice(verify)
    if verify:
        from embedl_deploy.rewriting.verified import apply_verified

        return apply_verified(plan, args, kwargs, raises=verify == "raise")
    unchanged = all(plan.decided.get(match) == match.apply for match in plan.sites())
    if plan.scratch is not None and unchanged:
        result, records = plan.scratch, plan.records
        plan.scratch = None
    else:
        result = structural_copy(plan.model, deferred=True)
        records = _replay(plan, result)
    model, report = recorded(plan, result, records)
    return (model if deferred else model.finish()), report


def recorded(
    plan: TransformationPlan,
    result: TracedModule,
    records: tuple[PassRecord, ...],
    notes: tuple[str, ...] = (),
) -> tuple[TracedModule, TransformationReport]:
    """Attaches to a rewritten graph the report of ``records``; returns both."""
    record = record_of(result)
    record.backend = plan.backend or record.backend
    report = TransformationReport(
        passes=records,
        backend=record.backend,
        tracer=record.tracer,
        notes=(*record.notes, *notes, *(_GONE.format(site) for site in plan.missing)),
        key_map=dict(record.key_map),
        coverage=_coverage(plan.model, records),
    )
    record.report = report
    return result, report


def _run_stage(
    scratch: TracedModule,
    stage: Stage,
    found: list[PatternMatch],
    gate: Gate | None,
    *,
    careful: bool,
) -> PassRecord:
    return apply_patterns(
        scratch,
        stage.patterns,
        stage.name,
        until_fixpoint=stage.until_fixpoint,
        gate=gate,
        matches=found,
        verify=_accept if careful else None,
    )


def _accept(
    match: PatternMatch, made: tuple[Node, ...], outputs: Mapping[Node, Node]
) -> Refusal | None:
    """A check that takes any replacement; the engine's own checks still run."""
    del match, made, outputs


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
    lost = [match for key, match in wanted.items() if match.apply and key not in reached]
    return tuple(with_lost(record, lost, plan, records) for record in records)


def with_lost(
    record: PassRecord,
    lost: list[PatternMatch],
    plan: TransformationPlan,
    records: list[PassRecord],
) -> PassRecord:
    """Adds to a stage's record the planned sites that a veto upstream made impossible."""
    vetoed = [
        f"{match.pattern.name} at %{match.root.name}"
        for match in plan.sites()
        if plan.decided.get(match) and not match.apply
    ]
    undone = [
        f"{site.pattern} at %{site.site}"
        for done in records
        for site in done.refused
        if (site.reason or "").startswith(ROLLED_BACK)
    ]
    culprits = ", ".join([*vetoed, *undone][:3])
    reason = "it reads what another match would have made, which was left alone"
    refusal = Refusal(f"{reason}: {culprits}" if culprits else reason)
    extra = [site_record(match, refusal=refusal) for match in lost if match.stage == record.name]
    return replace(record, refused=(*record.refused, *extra))


def _coverage(model: GraphModule, records: tuple[PassRecord, ...]) -> dict[str, float]:
    """Returns the share of the model's multiply-accumulates that each stage's matches consume."""
    macs = {
        scope + node.name: macs_of(node)
        for scope, part in graphs_of(model)
        for node in part.graph.nodes
    }
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
