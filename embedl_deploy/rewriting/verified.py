"""Applies a plan with every site and every stage checked, and takes back what is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.ddmin import ddmin
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.model_check import ModelCheck, Moved
from embedl_deploy.rewriting.plan import (
    SiteKey,
    TransformationPlan,
    recorded,
    site_key,
    with_lost,
)
from embedl_deploy.rewriting.records import (
    PassRecord,
    SiteRecord,
    TransformationReport,
    site_record,
)
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.stages import Stage
from embedl_deploy.rewriting.verify import ROLLED_BACK, Verifier


def apply_verified(
    plan: TransformationPlan,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    raises: bool = False,
    check: ModelCheck | None = None,
) -> tuple[TracedModule, TransformationReport]:
    """Returns the rewritten copy of ``plan.model`` and the report of what was done.

    Each site is checked alone on random inputs, then the whole model after each stage. Sites
    that move an output too far, also those that do so only together, are rolled back and
    reported; the rest goes on.

    Args:
        plan: What to apply.
        args: Example inputs for the whole model; random ones if neither these nor ``kwargs``
            are given.
        kwargs: Example keyword inputs.
        raises: Whether to raise instead of rolling back.
        check: The outputs to compare with, if they were computed already.

    Raises:
        VerificationError: ``raises`` is set and a site is wrong.
    """
    replay = _Replay(plan, check or ModelCheck(plan.model, args, kwargs), raises)
    result = structural_copy(plan.model, deferred=True)
    records: list[PassRecord] = []
    for stage in plan.stages:
        result, record = replay.stage(result, stage)
        records.append(record)
    lost = [
        match
        for key, match in replay.wanted.items()
        if match.apply and key not in replay.reached and key not in replay.banned
    ]
    for key, refusal in replay.banned.items():
        if key in replay.wanted:
            replay.wanted[key].apply, replay.wanted[key].refusal = False, refusal
    complete = tuple(with_lost(record, lost, plan, records) for record in records)
    model, report = recorded(plan, result, complete, tuple(replay.notes))
    return model.finish(), report


@dataclass
class _Replay:
    """A plan while it is applied with checks."""

    plan: TransformationPlan
    check: ModelCheck
    raises: bool
    wanted: dict[SiteKey, PatternMatch] = field(default_factory=dict[SiteKey, PatternMatch])
    reached: set[SiteKey] = field(default_factory=set[SiteKey])
    banned: dict[SiteKey, Refusal] = field(default_factory=dict[SiteKey, Refusal])
    notes: list[str] = field(default_factory=list[str])
    seen: dict[SiteKey, SiteRecord] = field(default_factory=dict[SiteKey, SiteRecord])

    def __post_init__(self) -> None:
        self.wanted = {site_key(match): match for match in self.plan.sites()}

    def stage(self, start: TracedModule, stage: Stage) -> tuple[TracedModule, PassRecord]:
        """Runs one stage on a copy of ``start``; returns what came of it."""
        result, record, applied = self._run(start, stage)
        for _ in range(len(applied)):
            tolerance = _tolerance(stage, record)
            moved = self.check.moved(result, tolerance)
            if not applied or not moved.too_far:
                break
            if not moved.overflows and self.check.agrees_in_double(result):
                self.notes.append(_amplified(stage, moved))
                break
            self._ban(start, stage, applied, tolerance, moved)
            result, record, applied = self._run(start, stage)
        return result, record

    def _run(
        self, start: TracedModule, stage: Stage, only: frozenset[SiteKey] | None = None
    ) -> tuple[TracedModule, PassRecord, tuple[SiteKey, ...]]:
        """Runs a stage; ``only`` these sites, without checking them again, if it is given."""
        result = structural_copy(start, deferred=True)
        matches: list[PatternMatch] = []

        def gate(match: PatternMatch) -> Refusal | None:
            key = site_key(match)
            if only is not None:
                return None if key in only else Refusal("left out for a test", match.root)
            self.seen[key] = site_record(match)
            return self._objection(key, match)

        record = apply_patterns(
            result,
            stage.patterns,
            stage.name,
            until_fixpoint=stage.until_fixpoint,
            gate=gate,
            matches=matches,
            verify=self._verify if only is None else None,
        )
        applied = tuple(site_key(match) for match in matches if match.refusal is None)
        return result, record, applied

    def _objection(self, key: SiteKey, match: PatternMatch) -> Refusal | None:
        self.reached.add(key)
        if key in self.banned:
            return self.banned[key]
        planned = self.wanted.get(key)
        if self.plan.gate is not None and not (planned is not None and planned.apply):
            left_out = self.plan.gate(match)
            if left_out is not None:
                return left_out
        if planned is None:
            # What was rolled back makes room for what the plan could not see.
            return None if self.banned else Refusal("the plan does not hold this site", match.root)
        if planned.apply or not self.plan.decided.get(planned, True):
            # Not a veto: where the engine declined before, it decides again.
            return None
        return planned.refusal or Refusal("vetoed in the plan", match.root)

    def _verify(
        self, match: PatternMatch, made: tuple[Node, ...], outputs: Mapping[Node, Node]
    ) -> Refusal | None:
        refusal = Verifier(self.raises)(match, made, outputs)
        if refusal is not None:
            self.banned[site_key(match)] = refusal
        return refusal

    def _ban(
        self,
        start: TracedModule,
        stage: Stage,
        applied: tuple[SiteKey, ...],
        tolerance: float,
        moved: Moved,
    ) -> None:
        """Finds the sites that move the model's output and bans them."""

        def fails(part: tuple[SiteKey, ...]) -> bool:
            return self.check.moved(self._run(start, stage, frozenset(part))[0], tolerance).too_far

        guilty = ddmin(applied, fails)
        if self.raises:
            raise VerificationError(_message([self.seen[key] for key in guilty], moved))
        for key in guilty:
            others = ", ".join(_place(self.seen[other]) for other in guilty if other != key)
            together = f" together with {others}" if others else ""
            self.banned[key] = Refusal(
                f"{ROLLED_BACK}: it{together} moved the model's output; it {moved}"
            )


def _place(site: SiteRecord) -> str:
    return f"{site.pattern} at %{site.site}"


def _tolerance(stage: Stage, record: PassRecord) -> float:
    applied = {site.pattern for site in record.applied}
    return max((rule.tolerance for rule in stage.patterns if rule.name in applied), default=0.0)


def _message(guilty: Sequence[SiteRecord], moved: Moved) -> str:
    sites = " and ".join(
        f"{_place(site)} ({site.source or 'no source line recorded'})" for site in guilty
    )
    return f"{sites}: the model's output {moved}"


def _amplified(stage: Stage, moved: Moved) -> str:
    return (
        f"stage {stage.name}: the output {moved}, and agrees in float64: the model itself "
        "turns rounding into other outputs"
    )
