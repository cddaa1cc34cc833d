"""Every engine in every state: what may be called, and what is said where something may not."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from embedl_deploy.engines import (
    EagerEngine,
    Engine,
    EngineState,
    InductorEngine,
    InductorEngineConfig,
    OnnxRuntimeEngine,
    OpenVINOEngine,
    TensorRTEngine,
    TensorRTEngineConfig,
    TorchAOEngine,
)
from embedl_deploy.engines.onnx_file import write_onnx
from embedl_deploy.errors import BuildError

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
ADMITTED = {
    EngineState.INIT: {"build"},
    EngineState.ACTIVE: {"infer", "activate", "deactivate", "to_dict"},
    EngineState.INACTIVE: {"activate", "deactivate", "to_dict"},
    EngineState.CHECKPOINT_LOADED: {"activate", "deploy"},
    EngineState.DEPLOYED: {"infer"},
}
CALLS: dict[str, Callable[[Engine], object]] = {
    "build": lambda engine: engine.build(linear(), None, [(X,)]),
    "infer": lambda engine: engine.infer(X),
    "activate": lambda engine: engine.activate(),
    "deactivate": lambda engine: engine.deactivate(),
    "deploy": lambda engine: engine.deploy(None),
    "to_dict": lambda engine: engine.to_dict(),
}
ENGINES = [
    pytest.param(EagerEngine, id="eager"),
    pytest.param(lambda: InductorEngine(InductorEngineConfig(ahead_of_time=False)), id="jit"),
    pytest.param(InductorEngine, id="inductor", marks=pytest.mark.slow),
    pytest.param(TorchAOEngine, id="torchao"),
    pytest.param(OnnxRuntimeEngine, id="onnxruntime"),
    pytest.param(OpenVINOEngine, id="openvino"),
]
Maker = Callable[[], Engine]
RUNS: list[int] = []


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.ReLU()).eval()


@pytest.fixture(name="made", scope="module", params=ENGINES)
def made_fixture(request: pytest.FixtureRequest) -> tuple[Engine, Maker]:
    """A built engine, and what makes one like it that is not built."""
    maker = cast("Maker", request.param)
    return maker().build(linear(), None, [(X,)]), maker


def in_state(made: tuple[Engine, Maker], state: EngineState) -> Engine:
    """Returns an engine in ``state``; the built one is built only once."""
    built, maker = made
    if state is EngineState.INIT:
        return maker()
    if state in (EngineState.ACTIVE, EngineState.INACTIVE):
        built.activate()
        if state is EngineState.INACTIVE:
            built.deactivate()
        return built
    loaded = type(built).from_dict(linear(), built.to_dict())
    if state is EngineState.DEPLOYED:
        loaded.deploy(None)
    return loaded


def refused(engine: Engine, state: EngineState) -> list[str]:
    """Returns the calls that are refused with the name of the engine and of the call."""
    found: list[str] = []
    for call, run in CALLS.items():
        if call in ADMITTED[state]:
            continue
        with pytest.raises(RuntimeError, match=rf"{type(engine).__name__}\.{call}\(\) does not go"):
            run(engine)
        assert engine.state is state
        found.append(call)
    return found


@pytest.mark.parametrize("state", list(EngineState))
def test_what_a_state_does_not_admit_is_refused(
    made: tuple[Engine, Maker], state: EngineState
) -> None:
    engine = in_state(made, state)

    assert engine.state is state
    assert engine.is_active is (state in (EngineState.ACTIVE, EngineState.DEPLOYED))
    assert set(refused(engine, state)) == set(CALLS) - ADMITTED[state]


def test_every_way_to_run_gives_the_same_values(made: tuple[Engine, Maker]) -> None:
    first = in_state(made, EngineState.ACTIVE).infer(X)
    in_state(made, EngineState.INACTIVE).activate()
    rested = made[0].infer(X)
    loaded = in_state(made, EngineState.CHECKPOINT_LOADED)
    loaded.activate()
    deployed = in_state(made, EngineState.DEPLOYED)

    assert isinstance(first, Tensor)
    for again in (rested, loaded.infer(X), deployed.infer(X)):
        assert isinstance(again, Tensor)
        assert not again.requires_grad
        assert torch.equal(again, first)
    with torch.no_grad():
        assert torch.allclose(first, linear()(X), atol=2e-2)
    assert deployed.device == made[0].device == torch.device("cpu")


def test_a_state_of_another_class_is_refused(made: tuple[Engine, Maker]) -> None:
    state = {**in_state(made, EngineState.ACTIVE).to_dict(), Engine.STATE_ENGINE: "OtherEngine"}

    with pytest.raises(ValueError, match="cannot load the state of a OtherEngine"):
        type(made[0]).from_dict(linear(), state)


def test_a_module_that_is_needed_and_not_given_is_asked_for(made: tuple[Engine, Maker]) -> None:
    state = in_state(made, EngineState.ACTIVE).to_dict()
    asks = pytest.raises(ValueError, match=r"give (it|the module) to from_dict\(\)")

    with asks if made[0].needs_module else nullcontext():
        loaded = type(made[0]).from_dict(None, state)
        loaded.deploy()
        assert isinstance(loaded.infer(X), Tensor)


@pytest.mark.skipif(torch.cuda.is_available(), reason="engines would move")
def test_a_loaded_engine_that_cannot_move_says_so_and_keeps_its_device(
    made: tuple[Engine, Maker],
) -> None:
    loaded = in_state(made, EngineState.CHECKPOINT_LOADED)

    with pytest.raises((BuildError, ValueError), match=r"CUDA|cuda"):
        loaded.deploy("cuda")
    assert loaded.state is EngineState.CHECKPOINT_LOADED
    loaded.deploy(None)
    assert loaded.device == torch.device("cpu")
    assert isinstance(loaded.infer(X), Tensor)


def test_the_users_module_stays_as_it_was(made: tuple[Engine, Maker]) -> None:
    module = linear()
    before = {
        name: (value, value.clone()) for name, value in module.state_dict(keep_vars=True).items()
    }

    type(made[0]).from_dict(module, in_state(made, EngineState.ACTIVE).to_dict()).activate()

    assert [type(part) for part in module] == [nn.Linear, nn.ReLU]
    for name, value in module.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])


class Counted(nn.Module):
    """Notes each run on real values; what a tracer makes of it is none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = linear()

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, FakeTensor):
            RUNS.append(1)
        return self.layers(x)


def test_a_build_runs_a_sample_at_most_once_and_takes_keywords(
    made: tuple[Engine, Maker],
) -> None:
    RUNS.clear()

    engine = made[1]().build(Counted().eval(), None, [((), {"x": X})])

    assert len(RUNS) <= 1
    output = engine.infer(x=X)
    assert isinstance(output, Tensor)
    with torch.no_grad():
        assert torch.allclose(output, linear()(X), atol=2e-2)


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="engines would run, on CUDA")
@pytest.mark.parametrize("state", [EngineState.INIT, EngineState.CHECKPOINT_LOADED])
def test_tensorrt_keeps_to_its_states_without_its_library(
    state: EngineState, tmp_path: Path
) -> None:
    engine = TensorRTEngine()
    if state is EngineState.CHECKPOINT_LOADED:
        written = write_onnx(linear(), (X,), tmp_path / "model.onnx")
        saved: dict[str, object] = {
            TensorRTEngine.STATE_ENGINE: "TensorRTEngine",
            TensorRTEngine.STATE_CONFIG: TensorRTEngineConfig().to_dict(),
            TensorRTEngine.STATE_DEVICE: "cuda",
            TensorRTEngine.STATE_FILE: tmp_path / "model.engine",
            TensorRTEngine.STATE_FORM: written.form.to_dict(),
            TensorRTEngine.STATE_NAMES: list(written.names),
        }
        engine = TensorRTEngine.from_dict(None, saved)

    assert set(refused(engine, state)) == set(CALLS) - ADMITTED[state]
