"""Searches which groups of a model to quantize so that a budget is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch.fx import GraphModule

from embedl_deploy.errors import SearchError
from embedl_deploy.passes.calibration import ForwardLoop
from embedl_deploy.passes.precision_check import Checks, SearchSteps, metric_of
from embedl_deploy.passes.precision_costs import Savings, measured_savings
from embedl_deploy.passes.precision_groups import Grouping, PrecisionGroup, groups_of
from embedl_deploy.passes.precision_report import Outcome, result_of
from embedl_deploy.passes.precision_sensitivity import (
    Method,
    Sensitivities,
    measure_sensitivities,
)
from embedl_deploy.passes.precision_state import SearchState, fingerprint_of, load_state
from embedl_deploy.passes.precision_trials import first_passing, thinned
from embedl_deploy.passes.quantization_quality import stored_bytes
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.config_file import config_as_json
from embedl_deploy.quantization.knapsack import Frontier, frontier
from embedl_deploy.quantization.search_result import Budget, PrecisionSearchResult

_CANDIDATES = 64
"""Choices on the frontier among which to search."""

_FINALS = 3
"""Choices of each frontier timed against each other where savings are measured."""

_EQUALLY_FAST = 1.01
"""Times the fastest; medians on a quiet machine vary by as much."""


@dataclass
class PrecisionSearch:
    """One search, step by step."""

    graph: GraphModule
    """The float graph."""

    data: ForwardLoop
    config: QuantConfig
    budget: Budget
    steps: SearchSteps
    method: Method = "output"
    state_path: Path | None = None
    everything: GraphModule = field(init=False)
    grouping: Grouping = field(init=False)
    state: SearchState = field(init=False)
    errors: list[float] = field(init=False)
    """Of each group, relative to the output."""

    def run(self) -> PrecisionSearchResult:
        """Returns the precisions that keep to the budget.

        Raises:
            SearchError: There is nothing to choose, or no choice keeps to the budget.
            CheckpointError: The state file belongs to another search.
        """
        self.steps.progress("quantizing everything")
        self.everything = self.steps.build(self.config)
        self.grouping = groups_of(self.everything)
        groups = self.grouping.groups
        if not groups:
            why = next(iter(self.grouping.fixed.values()), "the backend's patterns match nothing")
            raise SearchError(f"there is nothing to choose: {why}")
        self.state = self._loaded_state()
        checks = Checks(self.config, self.budget, groups, self.everything, self.steps, self.state)
        self._measure_float(checks)
        found = self._sensitivities()
        self.errors = [error / found.signal for error in found.errors]
        outcome = self._outcome(checks)
        config = checks.config_of(outcome.trial.quantized)
        return result_of(outcome, config, _bytes(self.graph))

    def _outcome(self, checks: Checks) -> Outcome:
        if self.budget.kind == "max_bytes" or self.steps.costs != "measured":
            return self._chosen(self._savings(), checks)
        savings = self._measured_savings(checks)
        if self.budget.kind == "max_latency_ms":
            return self._chosen(savings.mean, checks)
        return self._fastest(savings, checks)

    def _loaded_state(self) -> SearchState:
        if self.state_path is None:  # then nothing is compared, and the data need not be read
            return SearchState({})
        settings: dict[str, object] = {
            "configuration": str(config_as_json(self.config)),
            "metric": self.steps.metric,
            "costs": self.steps.costs,
            "way to measure latency": self.steps.measure,
            "method": self.method,
            "grouping": str([group.name for group in self.grouping.groups]),
        }
        return load_state(self.state_path, fingerprint_of(self.graph, self.data, settings))

    def _measure_float(self, checks: Checks) -> None:
        """Measures the two ends, nothing and everything quantized."""
        if self.state.float_metric is None:
            self.steps.progress("metric of the float model")
            self.state.float_metric = metric_of(self.steps.metric, self.graph, "the float model")
            self.state.save()
        names = self._names(range(len(self.grouping.groups)))
        needs_latency = self.budget.kind == "max_latency_ms"
        if needs_latency and (self.state.float_latency_ms is None or checks.known(names) is None):
            self.steps.progress("latency of the float model and with everything quantized")
            latencies = self.steps.measure([self.graph, self.everything])
            self.state.float_latency_ms = latencies[0]
            checks.remember(names, self.everything, latencies[1])

    def _sensitivities(self) -> Sensitivities:
        known = self.state.sensitivities
        if known is None:
            known = Sensitivities([0.0] * len(self.grouping.groups))
            self.state.sensitivities = known

        def on_batch(seen: Sensitivities) -> None:
            self.state.save()
            self.steps.progress(f"sensitivities, batch {seen.batches}")

        groups = self.grouping.groups
        measure_sensitivities(self.everything, groups, self.data, self.method, known, on_batch)
        if known.signal == 0.0:
            raise SearchError("the float model's output is 0 on all data: no error is relative")
        return known

    def _savings(self) -> Sequence[float]:
        groups = self.grouping.groups
        if self.budget.kind == "max_bytes":
            return [float(group.saved_bytes) for group in groups]
        assert self.steps.costs != "measured"
        savings = list(map(float, self.steps.costs(self.everything, groups)))
        if len(savings) != len(groups) or not all(map(math.isfinite, savings)):
            raise SearchError(
                f"costs must give one finite number for each of {len(groups)} groups, "
                f"got {len(savings)}: {savings}"
            )
        return savings

    def _measured_savings(self, checks: Checks) -> Savings:
        groups = self.grouping.groups
        signatures = list(dict.fromkeys(group.signature for group in groups))

        def build(quantized: Sequence[PrecisionGroup]) -> GraphModule:
            return self.steps.build(checks.config_of(tuple(group.name for group in quantized)))

        ends = (self.graph, self.everything)
        for position, signature in enumerate(signatures):
            if signature not in self.state.savings:
                self.steps.progress(f"what is saved, {position + 1} of {len(signatures)}")
                self.state.savings[signature] = measured_savings(
                    ends, groups, signature, build, self.steps.measure
                )
                self.state.save()
        first, last = zip(*(self.state.savings[group.signature] for group in groups), strict=True)
        return Savings(first, last)

    def _chosen(self, savings: Sequence[float], checks: Checks) -> Outcome:
        """Returns where walking along the frontier ends."""
        trade = frontier(savings, self.errors)
        order = self._order(trade)
        needed = self._needed_saving(savings, checks)
        start = next((at for at, found in enumerate(order) if trade.savings[found] >= needed), -1)
        start %= len(order)  # where nothing is predicted to be enough: the one that saves most
        names = [self._names(trade.choice(at)) for at in order]
        position = first_passing(len(order), start, lambda at: checks.passes(names[at]))
        if position is None:
            raise SearchError(checks.best_reachable())
        trial = checks.trial(names[position])
        return Outcome(
            self.budget, self.grouping, savings, trade, order[position], trial, self.state
        )

    def _fastest(self, savings: Savings, checks: Checks) -> Outcome:
        """Returns what is fastest as a whole, for what is saved does not quite add up.

        Savings as the last group quantized hold where nearly everything is, savings as the first
        where nearly nothing is: some choices of each frontier are timed in turns.
        """
        finals: list[Outcome] = []
        for wanted in (savings.last, savings.mean, savings.first):
            if max(wanted) > 0.0:
                finals += self._next_to(self._chosen(wanted, checks))
        if not finals:
            raise SearchError(_nothing_saved(len(self.errors)))
        names = [self._names(final.trade.choice(final.position)) for final in finals]
        trials = checks.timed(names, self.graph)
        kept = [
            replace(final, trial=trials[chosen])
            for final, chosen in zip(finals, names, strict=True)
            if checks.reached(trials[chosen]) <= self.budget.limit
        ]
        fastest = min(_latency(final) for final in kept)
        in_float = self.state.float_latency_ms
        assert in_float is not None
        if _EQUALLY_FAST * in_float < fastest:
            raise SearchError(
                f"no choice that keeps to {self.budget} is faster than the float model: it takes "
                f"{in_float:.4g} ms, the fastest found {fastest:.4g} ms"
            )
        equals = [final for final in kept if _latency(final) <= _EQUALLY_FAST * fastest]
        return min(equals, key=lambda final: final.trade.errors[final.position])

    def _next_to(self, outcome: Outcome) -> list[Outcome]:
        """Returns a choice, and some that save less for less error, down to half of it."""
        savings = outcome.trade.savings
        least = savings[outcome.position] / 2
        order = [at for at in range(outcome.position, len(savings)) if savings[at] >= least]
        finals = [order[at] for at in thinned([savings[at] for at in order], _FINALS)]
        return [replace(outcome, position=at) for at in finals]

    def _order(self, trade: Frontier) -> list[int]:
        """Returns positions on the frontier, what is wanted most first."""
        if self.budget.kind != "max_drop":
            return thinned(trade.savings, _CANDIDATES)[::-1]
        order = [at for at in range(len(trade)) if trade.taken[at].any()]
        if not order:
            raise SearchError(_nothing_saved(len(self.errors)))
        # Errors span orders of magnitude, and so do the drops that users allow.
        least = 1e-12 * max(trade.errors) or 1.0
        sizes = [math.log(max(trade.errors[at], least)) for at in order]
        return [order[at] for at in thinned(sizes, _CANDIDATES)]

    def _needed_saving(self, savings: Sequence[float], checks: Checks) -> float:
        """Returns the saving, in the unit of ``savings``, that is predicted to be enough."""
        if self.budget.kind == "max_drop":
            return -math.inf
        if self.budget.kind == "max_bytes":
            return _bytes(self.everything) + sum(savings) - self.budget.limit
        everything = checks.known(self._names(range(len(savings))))
        in_float = self.state.float_latency_ms
        assert everything is not None
        assert everything.latency_ms is not None
        assert in_float is not None
        total, measured = sum(savings), in_float - everything.latency_ms
        # The costs' unit, and what they get wrong on the whole, cancels out.
        unit = measured / total if total > 0.0 and measured > 0.0 else 1.0
        return (in_float - self.budget.limit) / unit

    def _names(self, positions: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.grouping.groups[position].name for position in positions)


def _latency(outcome: Outcome) -> float:
    assert outcome.trial.latency_ms is not None
    return outcome.trial.latency_ms


def _nothing_saved(groups: int) -> str:
    return (
        f"quantizing none of the {groups} groups is predicted to save anything: the float model "
        "is the fastest"
    )


def _bytes(graph: GraphModule) -> int:
    return sum(stored_bytes(graph).values())
