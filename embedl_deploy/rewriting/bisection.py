"""Finds the smallest set of rewrites that makes a model wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.ddmin import ddmin
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.model_check import ModelCheck, Moved
from embedl_deploy.rewriting.plan import SiteKey, TransformationPlan, site_key
from embedl_deploy.rewriting.records import SiteRecord, site_record
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.reproduction import write_reproduction


@dataclass(frozen=True)
class BisectResult:
    """What ``bisect`` found; ``str()`` of it is what a person wants to read."""

    guilty: tuple[SiteRecord, ...]
    """Rewrites that move the output too far, together; () if the whole plan does not."""

    needed: tuple[SiteRecord, ...]
    """Rewrites that are not wrong but that a guilty one cannot do without."""

    moved: Moved
    """How far the guilty rewrites alone move the output (the whole plan, if none is guilty)."""

    tests: int
    """How often the model was rewritten and run."""

    script: Path | None = None
    """The script that reproduces it."""

    def __str__(self) -> str:
        if not self.guilty:
            return f"no rewrite is guilty: the output {self.moved}"
        lines = [f"the output {self.moved} by"]
        lines += [f"  {_line(site)}" for site in self.guilty]
        lines += [f"  after {_line(site)}" for site in self.needed]
        lines += [f"run {self.script} to see it"] if self.script else []
        return "\n".join(lines)


def bisect(
    plan: TransformationPlan,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    tolerance: float = 1e-4,
    *,
    script: str | Path | None = None,
) -> BisectResult:
    """Returns the smallest set of the plan's rewrites that moves the model's output too far.

    Rewrites that are wrong only together are found together. The plan is not changed.

    Args:
        plan: A plan; what it vetoes stays out.
        args: Inputs; random ones of the recorded shapes if neither these nor ``kwargs`` are given.
        kwargs: Keyword inputs.
        tolerance: How far an output may move, relative to its norm in float32.
        script: Where to write a script of under 40 lines that reproduces the error.

    Raises:
        ValueError: ``plan`` is no plan, or the inputs are no tuple.
        OutputPathError: ``script`` cannot be written.
    """
    _require(plan, args)
    check = ModelCheck(plan.model, args, kwargs)
    replay = _Replay(plan)
    everything = tuple(site_key(match) for match in plan.sites() if match.apply)

    def moved_by(part: tuple[SiteKey, ...]) -> Moved:
        return check.moved(replay.run(frozenset(part)), tolerance)

    total = moved_by(everything)
    if not total.too_far:
        return BisectResult((), (), total, replay.runs)
    smallest = ddmin(everything, lambda part: moved_by(part).too_far)
    moved = moved_by(smallest)
    records = replay.records
    needed = tuple(key for key in smallest if replay.is_needed(key, smallest))
    guilty = tuple(key for key in smallest if key not in needed)
    path = None
    if script is not None:
        rules = [_rule_of(plan, key) for key in smallest]
        path = write_reproduction(Path(script), plan.model, [records[k] for k in smallest], rules)
    return BisectResult(
        tuple(records[key] for key in guilty),
        tuple(records[key] for key in needed),
        moved,
        replay.runs,
        path,
    )


def _require(plan: object, args: object) -> None:
    if not isinstance(plan, TransformationPlan):
        raise ValueError(
            f"bisect takes a plan, got {type(plan).__name__}: write "
            "bisect(get_transformation_plan(model, args, backend=…), args)"
        )
    if args is not None and not isinstance(args, tuple):
        raise ValueError(f"args is a tuple of inputs, got {type(args).__name__}: write (x,)")


def _rule_of(plan: TransformationPlan, key: SiteKey) -> type:
    return next(type(match.pattern) for match in plan.sites() if site_key(match) == key)


class _Replay:
    """Runs parts of a plan; remembers what the last run applied."""

    def __init__(self, plan: TransformationPlan) -> None:
        self.plan = plan
        self.runs = 0
        self.applied: tuple[SiteKey, ...] = ()
        self.records: dict[SiteKey, SiteRecord] = {}

    def run(self, part: frozenset[SiteKey]) -> TracedModule:
        """Returns the model with only the rewrites of ``part``."""

        def gate(match: PatternMatch) -> Refusal | None:
            key = site_key(match)
            if key not in part:
                return Refusal("left out for a test", match.root)
            self.records[key] = site_record(match)
            return None

        self.runs += 1
        result = structural_copy(self.plan.model, deferred=True)
        matches: list[PatternMatch] = []
        for stage in self.plan.stages:
            apply_patterns(
                result,
                stage.patterns,
                stage.name,
                until_fixpoint=stage.until_fixpoint,
                gate=gate,
                matches=matches,
            )
        self.applied = tuple(site_key(match) for match in matches if match.refusal is None)
        return result

    def is_needed(self, key: SiteKey, part: tuple[SiteKey, ...]) -> bool:
        """Tells whether others of ``part`` cannot be applied without ``key``."""
        others = frozenset(other for other in part if other != key)
        self.run(others)
        return frozenset(self.applied) != others


def _line(site: SiteRecord) -> str:
    where = site.source or "no source line recorded"
    return f"{site.pattern} at %{site.site} ({where})"
