"""The built-in strategies: try candidates, check them, time them against eager, keep one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from embedl_deploy.errors import TuningError
from embedl_deploy.lowering import EngineChoice
from embedl_deploy.quantization import QuantConfig
from embedl_deploy.tuning.candidates import Candidate, Tolerance, candidates_from, require_settings
from embedl_deploy.tuning.graph_spec import GraphSpec
from embedl_deploy.tuning.race import EAGER, is_faster, race
from embedl_deploy.tuning.sample import Sample
from embedl_deploy.tuning.strategy import TuneStrategy
from embedl_deploy.tuning.task import Reference, Task, references_of
from embedl_deploy.tuning.trial import Builder, Trial, checked
from embedl_deploy.tuning.tuned_graph import CandidateReport, Latency, TunedGraph

Backends = Sequence[EngineChoice | Candidate]


@dataclass(frozen=True)
class MeasuredStrategy(TuneStrategy):
    """What the built-in strategies share; one of them differs only in which trial it keeps.

    Wrong candidates are never kept, and slow ones only if asked for.
    """

    backends: Backends | None = None
    """Engines, or ``Candidate``s; None: every engine that is installed here."""

    quantization: QuantConfig | None = None
    """If set, each engine is tried on the quantized graph too."""

    tolerance: Tolerance | None = None
    """None: by the precision of each candidate."""

    keep_slower: bool = False
    """Whether a candidate that is not faster than eager may be kept."""

    measure_s: float = 2.0
    """Seconds of timing, shared by all candidates."""

    def __post_init__(self) -> None:
        require_settings(self.backends, self.quantization, self.tolerance)
        if not self.measure_s >= 0:
            raise ValueError(f"measure_s must not be negative, got {self.measure_s}")

    def tune(
        self,
        module: nn.Module,
        name: str,
        graph_spec: GraphSpec,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None = None,
    ) -> TunedGraph:
        task = Task(module, name, graph_spec, tuple(data), device, cache_dir)
        try:
            references = references_of(task)
        except TuningError as error:
            return self.concluded(task, [], None, f"stays eager: {error}")
        trials, eager = self.trials(task, references)
        return self.concluded(task, *self.decide(trials, eager))

    def tune_dry_run(
        self,
        module: nn.Module,
        name: str,
        graph_spec: GraphSpec,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None = None,
    ) -> TunedGraph:
        del module, name, data, device, cache_dir
        rows = tuple(
            CandidateReport(candidate.label, candidate.precision, "not tried: a dry run")
            for candidate in self.candidates()
        )
        return TunedGraph(graph_spec, None, rows, "a dry run: nothing was built")

    def candidates(self) -> tuple[Candidate, ...]:
        """Returns what is tried, in order."""
        return candidates_from(self.backends, self.quantization)

    def trials(
        self, task: Task, references: Sequence[Reference]
    ) -> tuple[list[Trial], Latency | None]:
        """Builds, checks and times every candidate."""
        builder = Builder(task)
        trials = [
            checked(builder.build(candidate), task, references, self.tolerance)
            for candidate in self.candidates()
        ]
        return self.timed(task, trials)

    def timed(self, task: Task, trials: Sequence[Trial]) -> tuple[list[Trial], Latency | None]:
        """Times the trials that are still in the running; the slow ones drop out."""
        running = {str(i): trial for i, trial in enumerate(trials) if trial.model is not None}
        if not running:
            return list(trials), None
        forwards = {key: trial.model.forward for key, trial in running.items() if trial.model}
        forwards[EAGER] = task.module.forward
        latencies = race(forwards, task.typical, task.device, self.measure_s)
        eager = latencies[EAGER]
        return [
            self.against(trial, latencies[str(i)], eager) if trial.model is not None else trial
            for i, trial in enumerate(trials)
        ], eager

    def against(self, trial: Trial, latency: Latency, eager: Latency) -> Trial:
        """Returns the trial with its latency, out of the running if eager is not slower."""
        speedup = eager.median_ms / latency.median_ms
        timed = replace(trial, report=replace(trial.report, latency=latency, speedup=speedup))
        if self.keep_slower or is_faster(latency, eager):
            return timed
        return timed.out(
            f"it is not faster than eager: {latency.median_ms:.3f} ms against "
            f"{eager.median_ms:.3f} ms"
        )

    def decide(
        self, trials: Sequence[Trial], eager: Latency | None
    ) -> tuple[list[Trial], Latency | None, str]:
        """Returns the trials with all but one out of the running, and why that one stays."""
        best = self.best([trial for trial in trials if trial.model is not None])
        if best is None:
            return list(trials), eager, "stays eager: no candidate is right and faster"
        label = best.report.label
        decided = [
            trial if trial is best or trial.model is None else trial.out(self.why_not(best))
            for trial in trials
        ]
        speedup = best.report.speedup
        faster = "" if speedup is None else f", {speedup:.2f} times as fast as eager"
        return decided, eager, f"runs by {label}{faster}"

    def best(self, running: Sequence[Trial]) -> Trial | None:
        """Returns the trial to keep: the fastest."""
        return min(running, key=_median, default=None)

    def why_not(self, best: Trial) -> str:
        """Returns why a trial that is right and fast is not kept."""
        return f"it is slower than {best.report.label}"

    def concluded(
        self, task: Task, trials: Sequence[Trial], eager: Latency | None, decision: str
    ) -> TunedGraph:
        """Returns the result with its table."""
        kept = next((trial for trial in trials if trial.model is not None), None)
        rows = tuple(
            replace(
                trial.report,
                kept=trial is kept,
                reason="" if trial is kept else trial.report.reason,
            )
            for trial in trials
        )
        return TunedGraph(task.spec, kept.model if kept else None, rows, decision, eager)


@dataclass(frozen=True)
class MinLatencyStrategy(MeasuredStrategy):
    """Keeps the candidate with the smallest median latency."""


@dataclass(frozen=True)
class OneBackendStrategy(MeasuredStrategy):
    """Keeps the one backend it is given, or raises ``TuningError``: it never falls back."""

    backend: EngineChoice | Candidate | None = None
    """The backend."""

    def __init__(
        self,
        backend: EngineChoice | Candidate,
        quantization: QuantConfig | None = None,
        tolerance: Tolerance | None = None,
        keep_slower: bool = False,
        measure_s: float = 2.0,
    ) -> None:
        if quantization is not None and not isinstance(backend, Candidate):
            backend = Candidate(backend, quantization=quantization)
        super().__init__([backend], None, tolerance, keep_slower, measure_s)
        object.__setattr__(self, "backend", backend)

    def concluded(
        self, task: Task, trials: Sequence[Trial], eager: Latency | None, decision: str
    ) -> TunedGraph:
        result = super().concluded(task, trials, eager, decision)
        if result.model is None:
            reasons = [row.reason for row in result.candidates] or [decision]
            label = self.candidates()[0].label
            raise TuningError(
                f"{label} cannot run {task.name!r}({task.spec.describe()}): {reasons[0]}; "
                "FirstWinsStrategy falls back to eager"
            )
        return result


@dataclass(frozen=True)
class FirstWinsStrategy(MeasuredStrategy):
    """Keeps the first candidate that builds, is right, and is faster than eager."""

    def trials(
        self, task: Task, references: Sequence[Reference]
    ) -> tuple[list[Trial], Latency | None]:
        builder, eager = Builder(task), None
        found: list[Trial] = []
        winner = ""
        for candidate in self.candidates():
            if winner:
                report = CandidateReport(candidate.label, candidate.precision)
                found.append(Trial(report.dropped(f"not tried: {winner} comes first")))
                continue
            trial = checked(builder.build(candidate), task, references, self.tolerance)
            (trial,), measured = self.timed(task, [trial])
            eager = measured or eager
            winner = trial.report.label if trial.model is not None else ""
            found.append(trial)
        return found, eager


@dataclass(frozen=True)
class LatencyBudgetStrategy(MeasuredStrategy):
    """Keeps the candidate nearest to eager among those within a budget of latency."""

    budget_ms: float = 0.0
    """The largest median latency of a call."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget_ms > 0:
            raise ValueError(f"budget_ms must be positive, got {self.budget_ms}")

    def against(self, trial: Trial, latency: Latency, eager: Latency) -> Trial:
        timed = super().against(trial, latency, eager)
        if timed.model is not None and latency.median_ms > self.budget_ms:
            return timed.out(
                f"it takes {latency.median_ms:.3f} ms, over the budget of {self.budget_ms} ms"
            )
        return timed

    def best(self, running: Sequence[Trial]) -> Trial | None:
        return min(running, key=_error, default=None)

    def why_not(self, best: Trial) -> str:
        return f"{best.report.label} is nearer to eager and within the budget"


def _median(trial: Trial) -> float:
    return trial.report.latency.median_ms if trial.report.latency else float("inf")


def _error(trial: Trial) -> float:
    return max((output.relative_error for output in trial.report.outputs), default=0.0)
