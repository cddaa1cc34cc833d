import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.engines import EagerEngine
from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine import Engine
from embedl_deploy.engines.engine import Sample as EngineSample
from embedl_deploy.errors import BuildError, TuningError
from embedl_deploy.quantize import QuantConfig
from embedl_deploy.tuning import measure
from embedl_deploy.tuning.candidates import TOLERANCES, Candidate, Tolerance
from embedl_deploy.tuning.dimensions import BatchDim, DeclaredShapes
from embedl_deploy.tuning.graph_spec import SizeRange
from embedl_deploy.tuning.max_throughput import MaxThroughputStrategy, batch_sizes
from embedl_deploy.tuning.measured_strategies import (
    FirstWinsStrategy,
    LatencyBudgetStrategy,
    MeasuredStrategy,
    MinLatencyStrategy,
    OneBackendStrategy,
)
from embedl_deploy.tuning.module import Module
from embedl_deploy.tuning.race import is_faster, latency_of
from embedl_deploy.tuning.states import ModuleState
from embedl_deploy.tuning.tuned_graph import TunedGraph

EAGER_MS = 1.0


class Clock:
    """Measures sleeps alone, whatever else the machine does; reading it takes 10 µs."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        self.now += 1e-5
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "time", CLOCK)


SHAPES = {"x": {0: BatchDim(1, 8)}}


@dataclass(frozen=True)
class FaultyConfig(EngineConfig):
    """One fault, or none."""

    fault: str = ""
    factor: float = 1.0
    sleep_ms: float = 0.0
    sleep_ms_per_item: float = 0.0


class FaultyEngine(Engine):
    """Runs the graph as it is, with the fault that its configuration names."""

    config_class = FaultyConfig
    config: FaultyConfig

    def supports(self, node: Node) -> None:
        del node

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[EngineSample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        del graph_spec, data, device, cache_dir
        if self.config.fault == "build":
            raise BuildError("the compiler crashed")
        if self.config.fault == "interrupt":
            raise KeyboardInterrupt
        self._module = module
        self._kept = torch.zeros(8, 4)
        self._calls = 0

    def _infer(self, *args: object, **kwargs: object) -> object:
        first = args[0]
        assert isinstance(first, Tensor)
        self._calls += 1
        CLOCK.sleep((self.config.sleep_ms + self.config.sleep_ms_per_item * len(first)) / 1e3)
        results: tuple[Tensor, ...] = self._module(*args, **kwargs)
        if self.config.fault == "constant":
            return tuple(torch.ones_like(result) for result in results)
        if self.config.fault == "constant after the first call" and self._calls > 1:
            return tuple(torch.ones_like(result) for result in results)
        if self.config.fault == "largest" and len(first) == 8:
            return tuple(result.flip(0) for result in results)
        if self.config.fault == "raises" and len(first) == 8:
            raise RuntimeError("out of memory")
        if self.config.fault == "mutates":
            first.add_(1)
        if self.config.fault == "buffer":
            return tuple(self._kept[: len(result)].copy_(result) for result in results)
        return tuple(result * self.config.factor for result in results)

    def _activate(self) -> None:
        """Holds nothing to take."""

    def _deactivate(self) -> None:
        """Holds nothing to give back."""

    def _saved(self) -> dict[str, object]:
        return {}

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        raise NotImplementedError


def engine(fault: str = "", **options: float) -> FaultyEngine:
    return FaultyEngine(FaultyConfig(fault, **options))


class SlowInPython(nn.Module):
    """Sleeps in Python, which no graph records: every engine is faster."""

    def __init__(self, sleep_ms: float = EAGER_MS) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.sleep_ms = sleep_ms

    def forward(self, x: Tensor) -> Tensor:
        CLOCK.sleep(self.sleep_ms / 1e3)
        return self.linear(x)


class ChangesItsInput(SlowInPython):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.add_(1)


class Cache:
    """Holds what earlier calls computed, as caches of decoders do."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []


class GrowsACache(nn.Module):
    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        cache.keys.append(x + 1)
        return torch.cat(cache.keys)


class Random(SlowInPython):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(4)


class OnlyEven(SlowInPython):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(2, -1, 4)


def inputs(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(seed))


def tuned(
    strategy: MeasuredStrategy,
    module: nn.Module | None = None,
    shapes: DeclaredShapes | None = SHAPES,
) -> TunedGraph:
    torch.manual_seed(0)
    wrapped = Module((module or SlowInPython()).eval(), dynamic_shapes=shapes)
    for seed, batch in enumerate((2, 4)):
        wrapped(inputs(batch, seed))
    (graph,) = wrapped.tune(strategy=strategy).graphs
    return graph


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("constant", "its outputs are off by"),
        ("constant after the first call", "output 0 is wrong on held-out sample 0: off by"),
        ("largest", "output 0 is wrong on batch=8: off by"),
        ("raises", "it fails on batch=8: .*out of memory"),
        ("build", "it cannot be built: BuildError: the compiler crashed"),
        ("mutates", "it changes its inputs on held-out sample 0, which eager does not"),
        ("buffer", "output 0 is wrong on held-out sample 0"),
    ],
)
def test_an_engine_with_a_fault_is_rejected_and_the_reason_given(fault: str, reason: str) -> None:
    graph = tuned(MinLatencyStrategy([engine(fault)], measure_s=0.0))

    assert graph.model is None
    assert not graph.candidates[0].kept
    assert re.search(reason, graph.candidates[0].reason), graph.candidates[0].reason
    assert "stays eager" in graph.decision


def test_a_slow_engine_is_rejected_unless_asked_for() -> None:
    slow = engine(sleep_ms=3 * EAGER_MS)

    rejected = tuned(MinLatencyStrategy([slow], measure_s=0.0))
    kept = tuned(MinLatencyStrategy([slow], measure_s=0.0, keep_slower=True))

    assert rejected.model is None
    assert "it is not faster than eager" in rejected.candidates[0].reason
    assert kept.model is not None
    assert kept.candidates[0].kept


def test_asking_for_slower_ones_keeps_no_wrong_one() -> None:
    graph = tuned(MinLatencyStrategy([engine("largest")], measure_s=0.0, keep_slower=True))

    assert graph.model is None


def test_the_fastest_of_those_that_are_right_is_kept() -> None:
    strategy = MinLatencyStrategy(
        [engine("largest"), engine(sleep_ms=0.5), EagerEngine()], measure_s=0.0
    )

    graph = tuned(strategy)

    kept = [row.label for row in graph.candidates if row.kept]
    assert kept == ["EagerEngine"]
    assert graph.candidates[1].reason == "it is slower than EagerEngine"
    assert graph.candidates[2].checked == 3
    assert (graph.candidates[2].speedup or 0) > 1
    assert "runs by EagerEngine" in graph.decision


def test_the_first_that_is_right_and_faster_wins_and_no_other_is_built() -> None:
    strategy = FirstWinsStrategy(
        [engine("constant"), engine(sleep_ms=0.2), EagerEngine()], measure_s=0.0
    )

    graph = tuned(strategy)

    assert [row.kept for row in graph.candidates] == [False, True, False]
    assert graph.candidates[2].reason.startswith("not tried: FaultyEngine")


def test_one_backend_never_falls_back() -> None:
    assert tuned(OneBackendStrategy(EagerEngine(), measure_s=0.0)).model is not None
    with pytest.raises(TuningError, match="the compiler crashed; FirstWinsStrategy falls back"):
        tuned(OneBackendStrategy(engine("build"), measure_s=0.0))


def test_within_a_budget_the_one_nearest_to_eager_is_kept() -> None:
    fast_but_off, exact, too_slow = engine(factor=1.0005), engine(sleep_ms=0.2), engine(sleep_ms=3)
    strategy = LatencyBudgetStrategy(
        [fast_but_off, exact, too_slow], budget_ms=2.0, measure_s=0.0, keep_slower=True
    )

    graph = tuned(strategy)

    assert [row.kept for row in graph.candidates] == [False, True, False]
    assert "is nearer to eager and within the budget" in graph.candidates[0].reason
    assert "over the budget of 2.0 ms" in graph.candidates[2].reason


def test_a_budget_must_be_given() -> None:
    with pytest.raises(ValueError, match="budget_ms must be positive"):
        LatencyBudgetStrategy([EagerEngine()])


def test_throughput_is_searched_over_batch_sizes() -> None:
    best_at_one, best_at_eight = engine(sleep_ms_per_item=0.4), engine(sleep_ms=0.6)
    strategy = MaxThroughputStrategy([best_at_one, best_at_eight], measure_s=0.0)

    graph = tuned(strategy, SlowInPython(sleep_ms=4.0))

    assert [row.kept for row in graph.candidates] == [False, True]
    assert graph.candidates[1].batch_size == 8
    assert (graph.candidates[1].throughput or 0) > (graph.candidates[0].throughput or 0)
    assert "does more items per second" in graph.candidates[0].reason


def test_without_a_batch_dimension_throughput_is_that_of_a_call() -> None:
    graph = tuned(MaxThroughputStrategy([EagerEngine()], measure_s=0.0), shapes=None)

    assert graph.candidates[0].kept
    assert graph.candidates[0].batch_size is None


def test_batch_sizes_are_the_ends_and_powers_of_two() -> None:
    assert batch_sizes(SizeRange(1, 20)) == [1, 2, 4, 8, 16, 20]
    assert batch_sizes(SizeRange(3, 8)) == [3, 4, 8]
    assert batch_sizes(SizeRange(5, 5)) == [5]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (ChangesItsInput(), "'ChangesItsInput' changes its inputs on held-out sample 0"),
        (Random(), "gives other outputs for the same input from call to call"),
        (OnlyEven(), "itself fails on batch=1"),
    ],
)
def test_a_module_that_cannot_be_compared_stays_eager(module: nn.Module, reason: str) -> None:
    graph = tuned(MinLatencyStrategy([EagerEngine()], measure_s=0.0), module)

    told = " ".join([graph.decision, *(row.reason for row in graph.candidates)])
    assert graph.model is None
    assert re.search(reason, told), told


def test_a_cache_that_grows_stays_eager_and_says_so() -> None:
    wrapped = Module(GrowsACache().eval())
    wrapped(inputs(2), Cache())

    (graph,) = wrapped.tune(strategy=MinLatencyStrategy([EagerEngine()], measure_s=0.0)).graphs

    assert "(as a cache that grows does), which engines do not" in graph.decision
    assert not graph.candidates


def test_an_interrupt_leaves_the_recording_to_be_tuned_later() -> None:
    wrapped = Module(SlowInPython().eval())
    wrapped(inputs(2))

    with pytest.raises(KeyboardInterrupt):
        wrapped.tune(strategy=MinLatencyStrategy([engine("interrupt")], measure_s=0.0))

    assert wrapped.state is ModuleState.RECORDING
    report = wrapped.tune(strategy=MinLatencyStrategy([EagerEngine()], measure_s=0.0))
    assert report.graphs[0].model is not None


def test_a_tolerance_can_be_set() -> None:
    off = engine(factor=1.01)

    strict = tuned(MinLatencyStrategy([off], measure_s=0.0))
    loose = tuned(MinLatencyStrategy([off], measure_s=0.0, tolerance=Tolerance(0.02, 0.99)))

    assert "allowed 0.001" in strict.candidates[0].reason
    assert loose.candidates[0].kept
    assert loose.candidates[0].outputs[0].relative_error == pytest.approx(0.01, rel=1e-3)


def test_a_quantized_candidate_is_judged_by_the_tolerance_of_int8() -> None:
    candidate = Candidate(EagerEngine(), quantization=QuantConfig())

    graph = tuned(MinLatencyStrategy([candidate], measure_s=0.0))

    (row,) = graph.candidates
    assert row.precision == "int8"
    assert TOLERANCES["int8"].relative_error > 0.1
    assert row.kept or "simulate" in row.reason or "dequantize" in row.reason


def test_a_dry_run_lists_the_candidates() -> None:
    wrapped = Module(SlowInPython().eval())
    wrapped(inputs(2))
    strategy = MinLatencyStrategy([engine("build"), EagerEngine()], quantization=QuantConfig())

    (graph,) = wrapped.tune(strategy=strategy, dry_run=True).graphs

    assert [row.precision for row in graph.candidates] == ["float32", "int8"] * 2
    assert all(row.reason == "not tried: a dry run" for row in graph.candidates)


def test_there_must_be_something_to_try() -> None:
    with pytest.raises(ValueError, match="at least one backend"):
        tuned(MinLatencyStrategy([]))


def test_tuning_leaves_the_module_as_it_was() -> None:
    module = SlowInPython().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    forward = module.forward

    tuned(MinLatencyStrategy([EagerEngine(), engine("constant")], measure_s=0.0), module)

    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.forward == forward
    assert not vars(module)["_forward_hooks"]
    assert "forward" not in vars(module)


def test_medians_come_with_an_interval() -> None:
    latency = latency_of([value / 1e3 for value in range(1, 101)])

    assert (latency.median_ms, latency.calls) == (pytest.approx(51), 100)
    assert (latency.low_ms, latency.high_ms) == pytest.approx((41, 61))


def test_faster_means_that_intervals_do_not_overlap() -> None:
    near, far = latency_of([0.010, 0.011, 0.012]), latency_of([0.020, 0.021])

    assert is_faster(near, far)
    assert not is_faster(near, latency_of([0.0115, 0.02, 0.03]))
