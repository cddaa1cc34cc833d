"""Builds choices of precisions and checks them against a budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import nn
from torch.fx import GraphModule

from embedl_deploy.errors import SearchError
from embedl_deploy.passes.precision_costs import CostModel, Measure
from embedl_deploy.passes.precision_groups import PrecisionGroup, config_without
from embedl_deploy.passes.precision_state import SearchState
from embedl_deploy.passes.quantization_quality import stored_bytes
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.search_result import Budget, Trial

Metric: TypeAlias = Callable[[nn.Module], float]
"""How good a model is; higher is better."""

Progress: TypeAlias = Callable[[str], object]
"""Told what is being done, a sentence per step."""


@dataclass(frozen=True)
class SearchSteps:
    """What a search does with models, so that it need not know of backends and engines."""

    build: Callable[[QuantConfig], GraphModule]
    """Quantizes and calibrates the model."""

    metric: Metric
    costs: CostModel | Literal["measured"]
    measure: Measure
    progress: Progress


@dataclass(frozen=True)
class Checks:
    """Tries choices of groups, each at most once."""

    config: QuantConfig
    budget: Budget
    groups: tuple[PrecisionGroup, ...]
    everything: GraphModule
    """With all groups quantized."""

    steps: SearchSteps
    state: SearchState

    def passes(self, names: tuple[str, ...]) -> bool:
        """Tells whether the choice of groups with these names keeps to the budget."""
        return self.reached(self.trial(names)) <= self.budget.limit

    def reached(self, trial: Trial) -> float:
        """Returns what the budget limits."""
        if self.budget.kind == "max_bytes":
            return trial.bytes
        if self.budget.kind == "max_latency_ms":
            assert trial.latency_ms is not None
            return trial.latency_ms
        assert self.state.float_metric is not None
        return self.state.float_metric - trial.metric

    def trial(self, names: tuple[str, ...]) -> Trial:
        """Returns what is measured of a choice, or was before."""
        known = self.known(names)
        if known is not None:
            return known
        self.steps.progress(f"checking {len(names)} of {len(self.groups)} groups quantized")
        graph = self._built(names)
        latency = None
        if self.budget.kind == "max_latency_ms":
            (latency,) = self.steps.measure([graph])
        return self.remember(names, graph, latency)

    def timed(
        self, choices: Sequence[tuple[str, ...]], in_float: GraphModule
    ) -> dict[tuple[str, ...], Trial]:
        """Returns the trials of several choices with the latencies of all, measured in turns.

        Args:
            choices: Names of groups.
            in_float: The float model, which is timed with them.
        """
        trials = {names: self.trial(names) for names in choices}
        if any(trial.latency_ms is None for trial in trials.values()):
            self.steps.progress(f"timing {len(trials)} choices")
            graphs = [self._built(names) for names in trials]
            self.state.float_latency_ms, *latencies = self.steps.measure([in_float, *graphs])
            for trial, latency in zip(trials.values(), latencies, strict=True):
                at = self.state.trials.index(trial)
                self.state.trials[at] = replace(trial, latency_ms=latency)
            self.state.save()
        return {names: self.trial(names) for names in trials}

    def known(self, names: tuple[str, ...]) -> Trial | None:
        """Returns the trial of a choice if there was one that measured what the budget limits."""
        needs_latency = self.budget.kind == "max_latency_ms"
        return next(
            (
                trial
                for trial in self.state.trials
                if trial.quantized == names and (trial.latency_ms is not None or not needs_latency)
            ),
            None,
        )

    def remember(
        self, names: tuple[str, ...], graph: GraphModule, latency_ms: float | None
    ) -> Trial:
        """Returns the trial of a built choice, kept for later."""
        metric = metric_of(
            self.steps.metric, graph, f"the model with {len(names)} groups quantized"
        )
        trial = Trial(names, sum(stored_bytes(graph).values()), metric, latency_ms)
        self.state.trials.append(trial)
        self.state.save()
        return trial

    def _built(self, names: tuple[str, ...]) -> GraphModule:
        if len(names) == len(self.groups):
            return self.everything
        return self.steps.build(self.config_of(names))

    def config_of(self, names: tuple[str, ...]) -> QuantConfig:
        """Returns the configuration that quantizes the groups with these names alone."""
        return config_without(
            self.config, [group for group in self.groups if group.name not in names]
        )

    def best_reachable(self) -> str:
        """Returns a sentence on the choice that came closest to the budget."""
        is_bytes = self.budget.kind == "max_bytes"  # of which the float model may take the least
        tried = [trial for trial in self.state.trials if trial.quantized or is_bytes]
        best = min(tried, key=self.reached)
        found = f"{self.reached(best):g} with {len(best.quantized)} of {len(self.groups)} groups"
        what = {
            "max_drop": f"the least drop found with anything quantized is {found}, of the float "
            f"model's {self.state.float_metric:g}",
            "max_latency_ms": f"the fastest found takes {found} quantized, the float model "
            f"{self.state.float_latency_ms}",
            "max_bytes": f"the smallest possible is {found} quantized"
            + ("" if best.quantized else ", as no choice of them saves bytes"),
        }[self.budget.kind]
        return f"no choice of precisions keeps to {self.budget}: {what}"


def metric_of(metric: Metric, graph: GraphModule, which: str) -> float:
    """Returns what the user's metric says of a model.

    Raises:
        SearchError: It says nothing that can be compared.
    """
    found: object = metric(graph)
    try:
        value = float(found)  # pyright: ignore[reportArgumentType]  # the user's function
    except (TypeError, ValueError) as error:
        raise SearchError(
            f"metric must return one number, got {type(found).__name__} for {which}"
        ) from error
    if not math.isfinite(value):
        raise SearchError(f"metric must return a finite number, got {value} for {which}")
    return value
