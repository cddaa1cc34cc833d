"""Searches which groups of a model to quantize so that a budget is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch.fx import GraphModule

from embedl_deploy.errors import SearchError
from embedl_deploy.passes.calibration import ForwardLoop
from embedl_deploy.passes.precision_check import Checks, SearchSteps, metric_of
from embedl_deploy.passes.precision_costs import measured_savings
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
from embedl_deploy.quantization.search_result import Budget, PrecisionSearchResult, Trial

_CANDIDATES = 64
"""Choices on the frontier among which to search."""

_FINALS = 8
"""Choices timed against each other where savings are measured."""

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
        savings = self._savings(checks)
        trade = frontier(savings, [error / found.signal for error in found.errors])
        chosen, trial = self._chosen(trade, savings, checks)
        outcome = Outcome(self.budget, self.grouping, trade, chosen, trial, self.state)
        return result_of(outcome, savings, checks.config_of(trial.quantized), _bytes(self.graph))

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

    def _savings(self, checks: Checks) -> list[float]:
        groups = self.grouping.groups
        if self.budget.kind == "max_bytes":
            return [float(group.saved_bytes) for group in groups]
        if self.steps.costs == "measured":
            return self._measured_savings(checks)
        savings = list(map(float, self.steps.costs(self.everything, groups)))
        if len(savings) != len(groups) or not all(map(math.isfinite, savings)):
            raise SearchError(
                f"costs must give one finite number for each of {len(groups)} groups, "
                f"got {len(savings)}: {savings}"
            )
        return savings

    def _measured_savings(self, checks: Checks) -> list[float]:
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
        return [self.state.savings[group.signature] for group in groups]

    def _chosen(
        self, trade: Frontier, savings: Sequence[float], checks: Checks
    ) -> tuple[int, Trial]:
        """Returns the position on the frontier that keeps to the budget, and its trial."""
        order = self._order(trade)
        needed = self._needed_saving(savings, checks)
        start = next((at for at, found in enumerate(order) if trade.savings[found] >= needed), -1)
        start %= len(order)  # where nothing is predicted to be enough: the one that saves most
        names = [self._names(trade.choice(at)) for at in order]
        position = first_passing(len(order), start, lambda at: checks.passes(names[at]))
        if position is None:
            raise SearchError(checks.best_reachable())
        if self.budget.kind == "max_drop" and self.steps.costs == "measured":
            return self._fastest(order[position:], trade, checks)
        return order[position], checks.trial(names[position])

    def _fastest(self, order: Sequence[int], trade: Frontier, checks: Checks) -> tuple[int, Trial]:
        """Returns the fastest of some positions, all timed in turns: savings do not quite add up.

        Args:
            order: Positions on the frontier, the first of which keeps to the budget.
            trade: The frontier.
            checks: What was tried.
        """
        finals = [order[at] for at in thinned([trade.savings[at] for at in order], _FINALS)]
        trials = checks.timed([self._names(trade.choice(at)) for at in finals], self.graph)
        kept = [
            (at, trial)
            for at, trial in zip(finals, trials, strict=True)
            if checks.reached(trial) <= self.budget.limit
        ]
        fastest = min(_latency(trial) for _, trial in kept)
        in_float = self.state.float_latency_ms
        assert in_float is not None
        if in_float < fastest:
            raise SearchError(
                f"no choice that keeps to {self.budget} is faster than the float model: it takes "
                f"{in_float:.4g} ms, the fastest found {fastest:.4g} ms"
            )
        # Of equals the last has the least error.
        return [found for found in kept if _latency(found[1]) <= _EQUALLY_FAST * fastest][-1]

    def _order(self, trade: Frontier) -> list[int]:
        """Returns positions on the frontier, what is wanted most first."""
        if self.budget.kind != "max_drop":
            return thinned(trade.savings, _CANDIDATES)[::-1]
        order = [at for at in range(len(trade)) if trade.taken[at].any()]
        if not order:
            raise SearchError(
                f"quantizing none of the {len(self.grouping.groups)} groups is predicted to save "
                "anything: the float model is the fastest"
            )
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


def _latency(trial: Trial) -> float:
    assert trial.latency_ms is not None
    return trial.latency_ms


def _bytes(graph: GraphModule) -> int:
    return sum(stored_bytes(graph).values())
