"""Puts together what a search for precisions found, with a reason for each group."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedl_deploy.passes.precision_groups import Grouping, PrecisionGroup
from embedl_deploy.passes.precision_state import SearchState
from embedl_deploy.passes.precision_trials import thinned
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.knapsack import Frontier
from embedl_deploy.quantization.search_result import (
    Budget,
    FrontierPoint,
    GroupChoice,
    PrecisionSearchResult,
    Trial,
)

_POINTS = 40


@dataclass(frozen=True)
class Outcome:
    """Where a search ended."""

    budget: Budget
    grouping: Grouping
    savings: Sequence[float]
    """Of each group, in the unit of the budget."""

    trade: Frontier
    position: int
    """Of the choice on the frontier."""

    trial: Trial
    state: SearchState


def result_of(outcome: Outcome, config: QuantConfig, float_bytes: int) -> PrecisionSearchResult:
    """Returns the result that the user gets.

    Args:
        outcome: Where the search ended.
        config: What was chosen.
        float_bytes: Of the parameters of the float model.
    """
    state = outcome.state
    seen = state.sensitivities
    assert seen is not None
    assert state.float_metric is not None
    groups = outcome.grouping.groups
    errors = [error / seen.signal for error in seen.errors]
    everything = tuple(group.name for group in groups)
    return PrecisionSearchResult(
        config=config,
        budget=outcome.budget,
        groups=tuple(
            _choice(outcome, group, error, saving)
            for group, error, saving in zip(groups, errors, outcome.savings, strict=True)
        ),
        fixed=outcome.grouping.fixed,
        frontier=_points(outcome),
        is_exact=outcome.trade.exact,
        chosen=outcome.trial,
        float_metric=state.float_metric,
        float_bytes=float_bytes,
        trials=tuple(state.trials),
        batches=seen.batches,
        float_latency_ms=state.float_latency_ms,
        everything=next((t for t in state.trials if t.quantized == everything), None),
    )


def _choice(outcome: Outcome, group: PrecisionGroup, error: float, saving: float) -> GroupChoice:
    is_quantized = group.name in outcome.trial.quantized
    return GroupChoice(
        group.name,
        group.kind,
        group.nodes,
        is_quantized,
        error,
        saving,
        group.macs,
        _reason(outcome, error, saving, is_quantized=is_quantized),
    )


def _reason(outcome: Outcome, error: float, saving: float, *, is_quantized: bool) -> str:
    unit = "bytes" if outcome.budget.kind == "max_bytes" else "ms"
    if saving <= 0.0:
        return f"quantizing it saves nothing ({saving:.3g} {unit})"
    whole = max(outcome.trade.errors)
    share = error / whole if whole else 0.0
    worth = f"{saving:.3g} {unit} for {share:.1%} of the error of quantizing all that saves"
    if is_quantized:
        return f"it saves {worth}"
    return f"left in float: {outcome.budget} is kept with more saving per error elsewhere; {worth}"


def _points(outcome: Outcome) -> tuple[FrontierPoint, ...]:
    """Returns some points of the frontier, and all that were tried."""
    trade = outcome.trade
    trials = {trial.quantized: trial for trial in outcome.state.trials}
    names = [group.name for group in outcome.grouping.groups]
    shown = dict.fromkeys((*thinned(trade.savings, _POINTS), outcome.position))
    points: list[FrontierPoint] = []
    for at in range(len(trade)):
        chosen = trade.choice(at)
        trial = trials.get(tuple(names[item] for item in chosen)) if trials else None
        if at in shown or trial is not None:
            points.append(FrontierPoint(len(chosen), trade.savings[at], trade.errors[at], trial))
    return tuple(points)
