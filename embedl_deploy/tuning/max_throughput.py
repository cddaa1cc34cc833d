"""The strategy that looks for the most items per second."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from embedl_deploy.tuning.graph_spec import SizeRange
from embedl_deploy.tuning.measured_strategies import MeasuredStrategy
from embedl_deploy.tuning.race import EAGER, is_faster, race
from embedl_deploy.tuning.task import Task
from embedl_deploy.tuning.trial import Trial
from embedl_deploy.tuning.tuned_graph import Latency


@dataclass(frozen=True)
class MaxThroughputStrategy(MeasuredStrategy):
    """Keeps the candidate with the most items per second, each at the batch size it does best.

    Batch sizes are searched inside the range of the graph's ``BatchDim``: its ends and the
    powers of two between them. A graph without one is measured at its own size.
    """

    def timed(self, task: Task, trials: Sequence[Trial]) -> tuple[list[Trial], Latency | None]:
        batch = next(
            ((name, size) for name, size in task.spec.symbols.items() if size.is_batch), None
        )
        running = {str(i): trial for i, trial in enumerate(trials) if trial.model is not None}
        if batch is None or not running:
            return super().timed(task, trials)
        forwards: dict[str, Callable[..., object]] = {
            key: trial.model.forward for key, trial in running.items() if trial.model
        }
        forwards[EAGER] = task.module.forward
        name, sizes = batch[0], batch_sizes(batch[1])
        measured = {
            size: race(forwards, task.sized({name: size}), task.device, self.measure_s / len(sizes))
            for size in sizes
        }
        size, eager = _best(measured, EAGER)
        found = list(trials)
        for key, trial in running.items():
            found[int(key)] = self._judged(trial, _best(measured, key), (size, eager))
        return found, eager

    def best(self, running: Sequence[Trial]) -> Trial | None:
        return max(
            running, key=lambda trial: trial.report.throughput or _per_call(trial), default=None
        )

    def why_not(self, best: Trial) -> str:
        return f"{best.report.label} does more items per second"

    def _judged(self, trial: Trial, own: tuple[int, Latency], eager: tuple[int, Latency]) -> Trial:
        """Returns the trial with its best throughput, out of the running if eager's is no less."""
        (size, latency), (eager_size, eager_latency) = own, eager
        throughput, of_eager = _throughput(own), _throughput(eager)
        report = replace(
            trial.report,
            latency=latency,
            batch_size=size,
            throughput=throughput,
            speedup=throughput / of_eager,
        )
        timed = replace(trial, report=report)
        if self.keep_slower or is_faster(_per_item(own), _per_item(eager)):
            return timed
        return timed.out(
            f"it is not faster than eager: {throughput:.0f} items/s at batch {size} against "
            f"{of_eager:.0f} at batch {eager_size} ({eager_latency.median_ms:.3f} ms)"
        )


def batch_sizes(allowed: SizeRange) -> list[int]:
    """Returns the batch sizes to try: the ends of the range and the powers of two between."""
    powers = [2**power for power in range(allowed.upper.bit_length())]
    inside = [size for size in powers if allowed.lower < size < allowed.upper]
    return list(dict.fromkeys([allowed.lower, *inside, allowed.upper]))


def _best(measured: dict[int, dict[str, Latency]], key: str) -> tuple[int, Latency]:
    found = [(size, latencies[key]) for size, latencies in measured.items()]
    return max(found, key=_throughput)


def _throughput(measured: tuple[int, Latency]) -> float:
    size, latency = measured
    return 1e3 * size / latency.median_ms


def _per_item(measured: tuple[int, Latency]) -> Latency:
    size, latency = measured
    return replace(latency, low_ms=latency.low_ms / size, high_ms=latency.high_ms / size)


def _per_call(trial: Trial) -> float:
    return 1e3 / trial.report.latency.median_ms if trial.report.latency else 0.0
