import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.engines import EagerEngine
from embedl_deploy.errors import CheckpointError
from embedl_deploy.tuning.checkpoint import load, save
from embedl_deploy.tuning.dimensions import BatchDim
from embedl_deploy.tuning.inspection import inspect
from embedl_deploy.tuning.locating import modules_of
from embedl_deploy.tuning.measured_strategies import MinLatencyStrategy, OneBackendStrategy
from embedl_deploy.tuning.module import Module
from embedl_deploy.tuning.pipeline import tune, wrap
from embedl_deploy.tuning.states import ModuleState

KEEP = MinLatencyStrategy([EagerEngine()], measure_s=0.0, keep_slower=True)


class Busy(nn.Module):
    """Takes time in Python, so that its share of a pipeline is known."""

    def __init__(self, sleep_ms: float, width: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.sleep_ms = sleep_ms

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.sleep_ms / 1e3)
        return self.linear(x)


class Branching(Busy):
    """Cannot be traced whole."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Pipeline:
    """Modules in an attribute, a list, a dict and twice; one is never called."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.encoder = Busy(4.0).eval()
        self.stages = [Busy(0.5).eval(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()]
        self.heads = {"main": self.stages[1], "unused": nn.Linear(4, 2)}
        self.name = "pipeline"

    def __call__(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.encoder(x) * scale
        for stage in self.stages:
            x = stage(x)
        return self.heads["main"](x)


def data() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 4) for batch in (2, 3)]


def outputs(pipeline: object) -> list[Tensor]:
    assert callable(pipeline)
    with torch.no_grad():
        return [cast("Tensor", pipeline(item)) for item in data()]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(some, others, strict=True))


def tuned() -> Pipeline:
    pipeline = Pipeline()
    wrap(pipeline, strategy=KEEP)
    tune(pipeline, data())
    return pipeline


def wrapper(module: object) -> Module:
    assert isinstance(module, Module)
    return module


def test_modules_are_found_wherever_they_are_and_once() -> None:
    located = modules_of(Pipeline())

    top = {found.name: [p.path for p in found.places] for found in located if found.depth == 0}
    assert top == {
        "encoder": [".encoder"],
        "stages[0]": [".stages[0]"],
        "stages[1]": [".stages[1]", ".heads['main']"],
        "heads['unused']": [".heads['unused']"],
    }
    assert [found.name for found in located if found.depth == 1][:2] == [
        "encoder.linear",
        "stages[0].linear",
    ]


def test_inspect_says_who_takes_the_time() -> None:
    info = inspect(Pipeline(), data(), number_of_iterations=2)

    by_name = {module.name: module for module in info.modules}
    assert {name: module.execution_count for name, module in by_name.items()} == {
        "encoder": 4,
        "stages[0]": 4,
        "stages[1]": 8,
        "heads['unused']": 0,
    }
    assert 0.5 < by_name["encoder"].execution_percentage < 1
    assert 4e-3 < by_name["encoder"].average_execution_time < 40e-3
    assert by_name["encoder"].parameters == 20
    assert [module.name for module in info.get_modules(limit=1)] == ["encoder"]
    assert [m.name for m in info.get_modules(min_execution_percentage=0.4)] == ["encoder"]
    assert len(info.get_modules()) == 3


def test_inspect_is_a_table_and_json() -> None:
    info = inspect(Pipeline(), data(), number_of_iterations=1, graph_breaks=False)

    lines = info.describe().splitlines()
    assert lines[0].split()[:3] == ["module", "class", "calls"]
    assert lines[1].startswith("encoder")
    assert json.loads(json.dumps(info.to_dict()))["modules"][0]["class"] == "Busy"


def test_inspect_names_what_cannot_be_traced_whole() -> None:
    pipeline = Pipeline()
    pipeline.encoder = Branching(0.0).eval()

    info = inspect(pipeline, data())

    assert "control flow depends on the values" in (info.modules[0].graph_break or "")
    assert info.modules[1].graph_break is None


def test_inspect_looks_inside_as_deep_as_asked_and_leaves_no_hook() -> None:
    model = nn.Sequential(Busy(0.1), nn.Sequential(Busy(0.1))).eval()

    info = inspect(model, torch.randn(2, 4), max_depth=1, graph_breaks=False)

    assert [module.name for module in info.modules] == ["Sequential", "0", "1"]
    assert [module.name for module in info.get_modules()] == ["Sequential"]
    assert not any(vars(module)["_forward_hooks"] for module in model.modules())
    assert not any(vars(module)["_forward_pre_hooks"] for module in model.modules())


@pytest.mark.parametrize(
    ("obj", "given", "message"),
    [
        (object(), [1], "there is no module in object"),
        ([nn.Linear(4, 4)], [1], "a list cannot be called: pass inference_function"),
        (nn.Linear(4, 4), [], "the data holds no item"),
    ],
)
def test_inspect_says_what_it_needs(obj: object, given: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect(obj, given)


def test_wrap_replaces_a_module_everywhere() -> None:
    pipeline = Pipeline()
    chosen = inspect(pipeline, data(), graph_breaks=False).get_modules()

    result = wrap(pipeline, chosen)

    assert result is pipeline
    assert isinstance(pipeline.encoder, Module)
    assert pipeline.stages[1] is pipeline.heads["main"]
    assert isinstance(pipeline.stages[1], Module)
    assert not isinstance(pipeline.heads["unused"], Module)


def test_wrap_reaches_modules_inside_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))

    wrap(model, [cast("nn.Sequential", model[1])[0]])
    whole = wrap(model[0])

    assert isinstance(cast("nn.Sequential", model[1])[0], Module)
    assert [*model.state_dict()] == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    assert wrapper(whole).module is model[0]


def test_wrap_takes_options_by_name() -> None:
    pipeline = Pipeline()

    wrap(
        pipeline,
        strategy=KEEP,
        strategies={"encoder": [KEEP]},
        dynamic_shapes={"encoder": {"x": {0: BatchDim(1, 8)}}},
    )
    outputs(pipeline)

    assert "batch=1..8" in wrapper(pipeline.encoder).graph_specs[0].describe()
    with pytest.raises(ValueError, match="no module is called 'decoder'; there are encoder"):
        wrap(Pipeline(), dynamic_shapes={"decoder": {}})


def test_wrap_refuses_what_it_cannot_do() -> None:
    model = nn.Sequential(nn.Linear(4, 4))

    with pytest.raises(ValueError, match="there is no such Linear"):
        wrap(model, [nn.Linear(4, 4)])
    with pytest.raises(ValueError, match="0 is inside Sequential"):
        wrap(model, [model, model[0]])
    with pytest.raises(ValueError, match="is in a tuple"):
        wrap([(nn.Linear(4, 4),)])


def test_a_tuned_pipeline_computes_the_same_by_its_engines() -> None:
    expected = outputs(Pipeline())
    pipeline = Pipeline()
    wrap(pipeline, strategy=KEEP)

    report = tune(pipeline, data())

    assert same(outputs(pipeline), expected)
    assert [m.state.value for m in (wrapper(pipeline.encoder), wrapper(pipeline.stages[1]))] == [
        "tuned",
        "tuned",
    ]
    assert wrapper(pipeline.encoder).eager_calls == 0
    assert "stays eager: this data never calls it" in report.describe()
    assert json.loads(json.dumps(report.to_dict()))["modules"][0]["module"] == "encoder"


def test_a_module_that_fails_stays_eager_and_says_so() -> None:
    pipeline = Pipeline()
    pipeline.encoder = Branching(0.0).eval()
    wrap(pipeline, strategy=OneBackendStrategy(EagerEngine(), measure_s=0.0, keep_slower=True))
    expected = outputs(pipeline)

    report = tune(pipeline, data())

    assert wrapper(pipeline.encoder).state is ModuleState.PASSTHROUGH
    assert wrapper(pipeline.stages[1]).state is ModuleState.TUNED
    assert "control flow depends on the values" in report.describe().splitlines()[0]
    assert same(outputs(pipeline), expected)


def test_tuning_again_leaves_what_is_tuned_alone() -> None:
    one, two = tuned(), tuned()
    before = wrapper(one.encoder).tuning_report

    report = tune(one, data())
    wrapper(two.encoder).enable_recording(force=True)
    tune(two, data(), strategy=KEEP)

    assert wrapper(one.encoder).tuning_report is before
    assert "was tuned before and stays so" in report.describe()
    assert wrapper(two.encoder).state is ModuleState.TUNED
    assert same(outputs(one), outputs(two))


def test_a_dry_run_changes_nothing() -> None:
    pipeline = Pipeline()
    wrap(pipeline, strategy=KEEP)

    report = tune(pipeline, data(), dry_run=True)

    assert wrapper(pipeline.encoder).state is ModuleState.RECORDING
    assert "a dry run" in report.describe()


def test_tune_needs_something_wrapped() -> None:
    with pytest.raises(ValueError, match="call wrap"):
        tune(Pipeline(), data())


def as_function(pipeline: Pipeline) -> Callable[[Tensor], Tensor]:
    encoder, rest = pipeline.encoder, pipeline.stages

    def run(x: Tensor) -> Tensor:
        x = encoder(x)
        return rest[1](rest[0](x))

    return run


def test_a_function_is_a_pipeline_of_what_it_refers_to() -> None:
    run = as_function(Pipeline())
    expected = outputs(run)

    wrap(run, strategy=KEEP)
    tune(run, data())

    assert [found.name for found in modules_of(run)][:2] == ["encoder", "rest[0]"]
    assert same(outputs(run), expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned") / "pipeline.tuned"
    save(tuned(), path)
    return path


def test_a_loaded_pipeline_computes_the_same_by_its_engines(saved: Path) -> None:
    pipeline = Pipeline()
    expected = outputs(Pipeline())

    result = load(pipeline, saved)

    assert result is pipeline
    assert same(outputs(pipeline), expected)
    assert wrapper(pipeline.encoder).state is ModuleState.TUNED
    assert wrapper(pipeline.encoder).eager_calls == 0
    assert pipeline.stages[1] is pipeline.heads["main"]


def test_a_checkpoint_can_be_moved_and_saved_again(saved: Path, tmp_path: Path) -> None:
    moved, again = tmp_path / "moved", tmp_path / "again"
    moved.write_bytes(saved.read_bytes())
    pipeline = Pipeline()

    load(pipeline, moved)
    moved.unlink()
    save(pipeline, again)

    assert same(outputs(pipeline), outputs(Pipeline()))
    assert again.read_bytes() == saved.read_bytes()


def test_tuning_after_loading_does_not_interfere(saved: Path) -> None:
    loaded, other = Pipeline(), Pipeline()
    load(loaded, saved)
    before = outputs(loaded)

    wrap(other, strategy=KEEP)
    tune(other, data())
    wrapper(loaded.encoder).enable_recording(force=True)
    tune(loaded, data(), strategy=KEEP)

    assert same(outputs(loaded), before)
    assert same(outputs(other), before)


def test_a_pipeline_that_is_a_module_is_saved_and_loaded(tmp_path: Path) -> None:
    model = wrap(Busy(0.0).eval(), strategy=KEEP)
    tune(model, data())
    save(model, tmp_path / "model")
    plain = cast("Module", model).module

    loaded = load(plain, tmp_path / "model", device_map="cpu")

    assert wrapper(loaded).module is plain
    assert same(outputs(loaded), outputs(plain))


def test_load_refuses_another_pipeline_and_leaves_it_as_it_was(saved: Path) -> None:
    other, heavier = Pipeline(), Pipeline()
    del other.stages[1], other.heads["main"]
    with torch.no_grad():
        cast("nn.Linear", heavier.heads["main"][0]).weight.add_(1)  # type: ignore[index]

    with pytest.raises(CheckpointError, match=r"a module at \.stages\[1\] and \.heads\['main'\]"):
        load(other, saved)
    with pytest.raises(CheckpointError, match=r"'stages\[1\]' was tuned with other weights"):
        load(heavier, saved)
    assert not isinstance(other.encoder, Module)
    assert not isinstance(heavier.encoder, Module)


def test_load_refuses_another_device(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="tuned for cpu, asked to load it for meta"):
        load(Pipeline(), saved, device_map={"encoder": "meta"})


def test_save_needs_something_tuned(tmp_path: Path) -> None:
    pipeline = Pipeline()
    wrap(pipeline)

    with pytest.raises(RuntimeError, match=r"nothing is tuned .*encoder is init"):
        save(pipeline, tmp_path / "never")
    assert not list(tmp_path.iterdir())
