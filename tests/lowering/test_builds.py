"""Engines are kept by content, built by executors, and chosen within a budget."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from embedl_deploy.backend import use_backend
from embedl_deploy.deployment import lower
from embedl_deploy.engines.engine import Sample
from embedl_deploy.engines.recording import RecordingConfig, RecordingEngine
from embedl_deploy.engines.scratch import run_folder
from embedl_deploy.errors import LoweringError
from embedl_deploy.lowering import LoweredModule, build_job
from embedl_deploy.lowering.build_job import device_of
from embedl_deploy.lowering.environment import hardware
from embedl_deploy.lowering.literals import Json
from embedl_deploy.quantize import quantize

P = ParamSpec("P")
T = TypeVar("T")
X = torch.linspace(-1, 1, 12).reshape(3, 4)


class CountedEngine(RecordingEngine):
    """Tells which of its kind were built."""

    built: list[str]

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        super()._build(module, graph_spec, data, device, cache_dir)
        self.built.append(self.config.label)


@pytest.fixture(name="built")
def built_fixture() -> Iterator[list[str]]:
    CountedEngine.built = []
    yield CountedEngine.built
    del CountedEngine.built


def counted(label: str, **config: object) -> CountedEngine:
    return CountedEngine(RecordingConfig(label, **config))  # type: ignore[arg-type]


def recording(label: str, **config: object) -> RecordingEngine:
    return RecordingEngine(RecordingConfig(label, **config))  # type: ignore[arg-type]


class Block(nn.Module):
    """Two linears with an operation between."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sin(self.first(x)))


def measured(folder: Path, model: nn.Module | None = None, **settings: object) -> LoweredModule:
    engines = [counted("slow", sleep_ms=3), counted("fast"), counted("wrong", factor=2.0)]
    model = Block().eval() if model is None else model
    arguments: dict[str, object] = {"engines": engines, "choose": "measure", "cache_dir": folder}
    return lower(model, (X,), **{**arguments, **settings})  # type: ignore[arg-type]


def test_a_second_run_builds_nothing_and_chooses_the_same(tmp_path: Path, built: list[str]) -> None:
    first = measured(tmp_path)
    assert built == ["slow", "fast", "wrong"]
    built.clear()

    second = measured(tmp_path)

    assert built == []
    assert second.report.engines == first.report.engines == {"subgraph_0": "fast"}
    (one,), (other,) = first.report.subgraphs, second.report.subgraphs
    assert (one.from_cache, other.from_cache) == (False, True)
    assert (other.measurements, other.failures) == (one.measurements, one.failures)
    assert torch.equal(second(X), first(X))


def test_the_first_engine_that_works_is_kept_too(tmp_path: Path, built: list[str]) -> None:
    for _ in range(2):
        measured(tmp_path, choose="first")

    assert built == ["slow"]


def other_weights(folder: Path) -> None:
    measured(folder, Block(seed=1).eval())


def other_graph(folder: Path) -> None:
    measured(folder, nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval())


def other_shapes(folder: Path) -> None:
    measured(folder, dynamic_shapes=({0: Dim("batch", min=1, max=8)},))


def other_settings(folder: Path) -> None:
    measured(folder, engines=[counted("slow", sleep_ms=2)])


def other_threads(folder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        measured(folder)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "change", [other_weights, other_graph, other_shapes, other_settings, other_threads]
)
def test_another_content_is_built_anew(
    tmp_path: Path, built: list[str], change: Callable[[Path], None]
) -> None:
    measured(tmp_path)
    built.clear()

    change(tmp_path)

    assert "slow" in built


def test_other_example_values_are_judged_anew_with_the_engines_there_are(
    tmp_path: Path, built: list[str]
) -> None:
    model = Block().eval()
    first = measured(tmp_path, model)
    built.clear()
    engines = [counted("slow", sleep_ms=3), counted("fast"), counted("wrong", factor=2.0)]

    lowered = lower(model, (X + 1,), engines=engines, choose="measure", cache_dir=tmp_path)

    assert built == []
    before, after = (found.report.subgraphs[0].measurements for found in (first, lowered))
    assert [m.engine for m in after] == ["slow", "fast"]
    assert [m.median_ms for m in after] != [m.median_ms for m in before]


@pytest.mark.parametrize("suffix", ["*.engine", "*.choice.json"])
def test_a_damaged_entry_is_built_anew_and_replaced(
    tmp_path: Path, built: list[str], suffix: str
) -> None:
    first = measured(tmp_path)
    for path in tmp_path.glob(suffix):
        content = bytearray(path.read_bytes())
        content[len(content) // 2 :] = b"damage"
        path.write_bytes(bytes(content))
    built.clear()

    second = measured(tmp_path)
    was_built = list(built)
    built.clear()
    measured(tmp_path)

    assert bool(was_built) is (suffix == "*.engine")
    assert built == []
    assert torch.equal(second(X), first(X))


def test_a_failure_of_the_moment_is_tried_again(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(CountedEngine, "_build", fail)
        assert measured(tmp_path).report.engines == {"subgraph_0": "eager"}

    assert measured(tmp_path).report.engines == {"subgraph_0": "fast"}
    assert built == ["slow", "fast", "wrong"]


@pytest.mark.parametrize("builds", [1, 2])
def test_an_interrupt_ends_the_run_and_the_next_one_goes_on(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch, builds: int
) -> None:
    whole = CountedEngine._build  # pyright: ignore[reportPrivateUsage]  # its step of the contract

    def interrupted(engine: CountedEngine, *given: object) -> None:
        if engine.config.label == "fast":
            raise KeyboardInterrupt
        whole(engine, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, ThreadPoolExecutor(builds) as pool:
        patch.setattr(CountedEngine, "_build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measured(tmp_path, builds=1 if builds == 1 else pool)

    left = list(run_folder(tmp_path).iterdir())
    kept = sorted(path.suffix for path in tmp_path.iterdir() if path != run_folder(tmp_path))
    assert measured(tmp_path).report.engines == {"subgraph_0": "fast"}
    assert (left, set(kept) - {".engine"}) == ([], set())
    assert built.count("slow") == 1


class CountingPool(ThreadPoolExecutor):
    """Counts what it is given."""

    submitted = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


def test_an_executor_of_threads_runs_the_builds(built: list[str]) -> None:
    with CountingPool(2) as pool:
        lowered = measured(cast("Path", None), builds=pool)

    assert pool.submitted == 3
    assert sorted(built) == ["fast", "slow", "wrong"]
    assert lowered.report.engines == {"subgraph_0": "fast"}
    torch.testing.assert_close(lowered(X), Block().eval()(X))


def test_an_executor_fills_the_cache(tmp_path: Path, built: list[str]) -> None:
    with CountingPool(2) as pool:
        measured(tmp_path, builds=pool)
        built.clear()

        measured(tmp_path, builds=pool)

    assert (built, pool.submitted) == ([], 3)
    assert list(run_folder(tmp_path).iterdir()) == []


def _spawning() -> Executor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


@pytest.mark.slow
@pytest.mark.parametrize("builds", [2, _spawning])
def test_processes_build_what_this_one_runs(
    monkeypatch: pytest.MonkeyPatch, builds: int | Callable[[], Executor]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("built in the wrong process")

    model = Block().eval()
    shapes = ({0: Dim("batch", min=1, max=8)},)
    engines = [recording("slow", sleep_ms=3), recording("fast")]
    monkeypatch.setattr(RecordingEngine, "_build", fail)

    pool = builds if isinstance(builds, int) else builds()
    lowered = lower(model, (X,), None, engines, "measure", dynamic_shapes=shapes, builds=pool)
    if isinstance(pool, Executor):
        pool.shutdown()

    assert lowered.report.engines == {"subgraph_0": "fast"}
    assert lowered.report.subgraphs[0].failures == ()
    torch.testing.assert_close(lowered(X[:1]), model(X[:1]))


class BrokenPool(Executor):
    """Loses everything it is given."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        del fn, args, kwargs
        future: Future[T] = Future()
        future.set_exception(RuntimeError("a worker died"))
        return future


def test_what_an_executor_loses_is_built_here(built: list[str]) -> None:
    said: list[str] = []

    measured(cast("Path", None), builds=BrokenPool(), progress=said.append)

    assert built == ["slow", "fast", "wrong"]
    assert "the executor did not run a build: RuntimeError: a worker died" in said


@pytest.mark.parametrize("fits", [True, False])
def test_what_would_not_run_here_is_not_built_elsewhere(
    built: list[str], monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    flags = cast("list[Json]", hardware()["flags"])
    flags = flags[1:] if fits else [*flags, "amx_future"]
    monkeypatch.setattr(build_job, "hardware", lambda: {**hardware(), "flags": flags})
    said: list[str] = []

    with CountingPool(1) as pool:
        lowered = measured(cast("Path", None), builds=pool, progress=said.append)

    assert (pool.submitted, sorted(built)) == (3, ["fast", "slow", "wrong"])
    assert lowered.report.engines == {"subgraph_0": "fast"}
    refused = [line for line in said if "of no use here" in line]
    assert len(refused) == (0 if fits else 3)
    assert all("a processor with amx_future, which" in line for line in refused)


def test_no_builds_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="builds must be 1 or more, or an executor, got 0"):
        measured(cast("Path", None), builds=0)


def test_the_budget_counts_over_all_subgraphs_but_each_gets_an_engine(built: list[str]) -> None:
    engines = [counted("one", takes=["linear"]), counted("two", takes=["linear"])]
    model = Block().eval()

    lowered = lower(model, (X,), None, engines, "measure", time_budget_s=1e-9)

    assert built == ["one", "one"]
    failures = [failure for part in lowered.report.subgraphs for failure in part.failures]
    assert [f.engine for f in failures] == ["two", "two"]
    assert {f.reason for f in failures} == {"the time budget was spent"}


def test_a_spent_budget_goes_on_until_something_works(built: list[str]) -> None:
    engines = [counted("wrong", factor=2.0), counted("right"), counted("never")]

    lowered = lower(Block().eval(), (X,), None, engines, "measure", time_budget_s=1e-9)

    assert built == ["wrong", "right"]
    assert lowered.report.engines == {"subgraph_0": "right"}


def test_one_engine_for_all_wins_where_the_parts_together_are_slower() -> None:
    # Each linear is faster on its own engine, and the way there and back costs more than that.
    engines = [recording("linears", takes=["linear"], sleep_ms=4), recording("all", sleep_ms=5)]

    lowered = lower(Block().eval(), (X,), None, engines, "measure")

    assert lowered.report.engines == {"subgraph_0": "all"}
    parts, whole = lowered.report.whole
    assert (parts.engine, parts.kept) == ("linears + all in 3 parts", False)
    assert (whole.engine, whole.kept) == ("all", True)
    assert parts.median_ms > whole.median_ms


def test_parts_are_kept_where_they_are_faster_than_every_engine_for_all(tmp_path: Path) -> None:
    slow_in_all = recording("all", sleep_ms=9)
    engines = [recording("linears", takes=["linear"]), recording("sines", takes=["sin"])]
    model = Block().eval()

    lowered = lower(model, (X,), None, [*engines, slow_in_all], "measure", cache_dir=tmp_path)
    again = lower(model, (X,), None, [*engines, slow_in_all], "measure", cache_dir=tmp_path)

    for found in (lowered, again):
        assert list(found.report.engines.values()) == ["linears", "sines", "linears"]
        assert [m.kept for m in found.report.whole] == [True, False]
        torch.testing.assert_close(found(X), model(X))


def test_a_kept_choice_of_parts_is_for_its_tolerance_only(tmp_path: Path) -> None:
    engines = [
        recording("linears", takes=["linear"], sleep_ms=4),
        recording("sines", takes=["sin"]),
        recording("all", sleep_ms=5, factor=1.3),
    ]
    model = Block().eval()

    def lowered(tolerance: float | None) -> LoweredModule:
        settings = {"cache_dir": tmp_path, "tolerance": tolerance}
        return lower(model, (X,), None, engines, "measure", **settings)  # type: ignore[arg-type]

    strict, loose, again = lowered(None), lowered(0.5), lowered(None)

    parts = ["linears", "sines", "linears"]
    assert list(strict.report.engines.values()) == list(again.report.engines.values()) == parts
    assert list(loose.report.engines.values()) == ["all"]


class Twins(nn.Module):
    """Two linears side by side."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sin(x)
        return torch.cos(self.one(hidden) + self.two(hidden))


def test_a_kept_choice_of_parts_is_for_these_parts_only(tmp_path: Path) -> None:
    engines = [recording("linears", takes=["linear"]), recording("all", sleep_ms=2)]
    model = Twins().eval()

    def lowered(tied: str) -> LoweredModule:
        settings = {"cache_dir": tmp_path, "atomic": [["sin", tied]]}
        return lower(model, (X,), None, engines, "measure", **settings)  # type: ignore[arg-type]

    found = [lowered("linear"), lowered("linear_1")]

    assert [one.report.whole[0].engine for one in found] == ["all + linears in 3 parts"] * 2
    assert found[0].report.whole != found[1].report.whole
    assert lowered("linear").report.whole == found[0].report.whole


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_what_is_measured_does_not_rest_on_the_order_of_the_engines(order: list[int]) -> None:
    engines = [
        recording("linears", takes=["linear"]),
        recording("sines", takes=["sin"]),
        recording("all", sleep_ms=9),
    ]

    lowered = lower(Block().eval(), (X,), None, [engines[i] for i in order], "measure")

    assert list(lowered.report.engines.values()) == ["linears", "sines", "linears"]


class HeavyEngine(RecordingEngine):
    """Holds 64 MB while it is active."""

    def _activate(self) -> None:
        self.held = torch.ones(16 << 20)

    def _deactivate(self) -> None:
        self.held = None

    def _saved(self) -> dict[str, object]:
        return {**super()._saved(), "table": torch.zeros(1000)}


def test_the_report_says_what_an_engine_takes() -> None:
    lowered = lower(Block().eval(), (X,), None, HeavyEngine(RecordingConfig()), "measure")

    (measurement,) = lowered.report.subgraphs[0].measurements
    assert measurement.artifact_bytes == lowered.report.subgraphs[0].artifact_bytes == 4000
    assert measurement.resident_bytes is not None
    assert 60 << 20 < measurement.resident_bytes < 80 << 20
    assert json.dumps(lowered.report.to_dict())


def test_eager_is_no_candidate_for_quantized_parts() -> None:
    with use_backend("inductor"):
        quantized = quantize(Block().eval(), (X,), forward_loop=lambda model: model(X))

    with pytest.raises(LoweringError, match="eager failed to build subgraph_0: it would run"):
        lower(quantized, (X,), None, ["eager", recording("broken", build_error="no")], "measure")


def test_a_number_on_the_processor_does_not_say_where_the_rest_lies() -> None:
    number, rest = torch.ones(()), torch.ones(2, device="meta")

    assert device_of((number, 3, rest)) == torch.device("meta")
    assert device_of((number, "text")) == device_of(()) == torch.device("cpu")
