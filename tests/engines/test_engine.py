from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy import engines
from embedl_deploy.engines import (
    EagerEngine,
    Engine,
    EngineState,
    InductorEngine,
    InductorEngineConfig,
    OnnxRuntimeEngine,
    OpenVINOEngine,
)
from embedl_deploy.errors import BuildError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))

MAKERS: dict[str, Callable[[], Engine]] = {
    "eager": EagerEngine,
    "inductor": InductorEngine,
    "inductor-jit": lambda: InductorEngine(InductorEngineConfig(ahead_of_time=False)),
}

ADMITTED = {
    EngineState.INIT: {"build"},
    EngineState.ACTIVE: {"infer", "activate", "deactivate", "to_dict"},
    EngineState.INACTIVE: {"activate", "deactivate", "to_dict"},
    EngineState.CHECKPOINT_LOADED: {"activate", "deploy"},
    EngineState.DEPLOYED: {"infer"},
}
CALLS = ("build", "infer", "activate", "deactivate", "deploy", "to_dict")
ILLEGAL = [
    (state, call) for state, admitted in ADMITTED.items() for call in CALLS if call not in admitted
]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()


@pytest.fixture(name="saved", params=list(MAKERS), scope="module")
def saved_fixture(request: pytest.FixtureRequest) -> tuple[type[Engine], Engine, nn.Module]:
    module = linear()
    engine = MAKERS[request.param]().build(module, None, [(X,)], "cpu")
    return type(engine), engine, module


def loaded(saved: tuple[type[Engine], Engine, nn.Module]) -> Engine:
    kind, engine, module = saved
    return kind.from_dict(module, engine.to_dict())


def in_state(state: EngineState) -> Engine:
    engine = EagerEngine()
    if state is EngineState.INIT:
        return engine
    engine.build(linear(), None, [(X,)])
    if state is EngineState.INACTIVE:
        engine.deactivate()
    if state in (EngineState.CHECKPOINT_LOADED, EngineState.DEPLOYED):
        engine = EagerEngine.from_dict(linear(), engine.to_dict())
    if state is EngineState.DEPLOYED:
        engine.deploy(None)
    return engine


def called(engine: Engine, call: str) -> object:
    arguments = {"build": (linear(), None, [(X,)]), "infer": (X,), "deploy": (None,)}
    return getattr(engine, call)(*arguments.get(call, ()))


@pytest.mark.parametrize(("state", "call"), ILLEGAL)
def test_refuses_calls_that_the_state_does_not_admit(state: EngineState, call: str) -> None:
    engine = in_state(state)

    with pytest.raises(RuntimeError, match=rf"EagerEngine.*{call}"):
        called(engine, call)
    assert engine.state is state


@pytest.mark.parametrize(
    ("state", "call", "cure"),
    [
        (EngineState.INIT, "infer", r"call build\(\) first"),
        (EngineState.INIT, "deploy", r"only what from_dict\(\) loads is deployed"),
        (EngineState.ACTIVE, "build", "it was built before; make a new engine"),
        (EngineState.ACTIVE, "deploy", r"save this engine with to_dict\(\), and load that"),
        (EngineState.INACTIVE, "infer", r"call activate\(\) first"),
        (EngineState.INACTIVE, "build", "it was built before; make a new engine"),
        (EngineState.INACTIVE, "deploy", r"save this engine with to_dict\(\), and load that"),
        (EngineState.CHECKPOINT_LOADED, "build", "it was loaded, .* make a new engine"),
        (EngineState.CHECKPOINT_LOADED, "infer", r"call activate\(\) or deploy\(\) first"),
        (EngineState.CHECKPOINT_LOADED, "to_dict", r"call activate\(\) first"),
        (EngineState.DEPLOYED, "deactivate", "deployed for good"),
    ],
)
def test_says_which_call_is_missing_or_too_late(state: EngineState, call: str, cure: str) -> None:
    with pytest.raises(RuntimeError, match=cure):
        called(in_state(state), call)


@pytest.mark.parametrize("state", list(EngineState))
def test_only_active_and_deployed_engines_are_active(state: EngineState) -> None:
    expected = state in (EngineState.ACTIVE, EngineState.DEPLOYED)

    assert in_state(state).is_active is expected


def test_runs_again_after_a_rest(saved: tuple[type[Engine], Engine, nn.Module]) -> None:
    _, engine, module = saved
    expected = module(X)

    engine.deactivate()
    engine.deactivate()
    engine.activate()
    engine.activate()

    assert torch.allclose(engine_output(engine), expected, atol=1e-6)


def test_deploys_what_was_saved(saved: tuple[type[Engine], Engine, nn.Module]) -> None:
    first = engine_output(saved[1])

    engine = loaded(saved)
    assert engine.state is EngineState.CHECKPOINT_LOADED
    engine.deploy(None)

    assert torch.equal(engine_output(engine), first)
    assert engine.device == torch.device("cpu")


def test_does_not_load_the_state_of_another_class() -> None:
    state = in_state(EngineState.ACTIVE).to_dict()

    with pytest.raises(ValueError, match="InductorEngine cannot load the state of a EagerEngine"):
        InductorEngine.from_dict(linear(), state)


def test_engines_that_run_the_module_need_it() -> None:
    state = in_state(EngineState.ACTIVE).to_dict()

    with pytest.raises(ValueError, match="give it to from_dict"):
        EagerEngine.from_dict(None, state)


def test_refuses_a_device_it_does_not_build_for() -> None:
    engine = EagerEngine()

    with pytest.raises(ValueError, match="builds for cpu and cuda, got meta"):
        engine.build(linear(), None, [(X,)], "meta")
    assert engine.state is EngineState.INIT


def test_a_failed_build_leaves_no_file_and_can_be_tried_again(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    engine = InductorEngine()

    with pytest.raises(BuildError, match="depends on the values of a tensor"):
        engine.build(Broken(), None, [(X,)], "cpu", tmp_path)
    assert engine.state is EngineState.INIT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [OpenVINOEngine, OnnxRuntimeEngine])
def test_an_interrupted_build_leaves_no_file_and_can_be_tried_again(
    kind: type[OpenVINOEngine] | type[OnnxRuntimeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    engine = kind()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "_open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.build(linear(), None, [(X,)], "cpu", tmp_path)

    assert engine.state is EngineState.INIT
    assert list(tmp_path.iterdir()) == []
    assert engine.build(linear(), None, [(X,)], "cpu", tmp_path).is_active


def test_refuses_to_build_for_a_device_that_the_module_is_not_on() -> None:
    engine = EagerEngine()

    with pytest.raises(ValueError, match=r"must lie on cuda .* on cpu: call module.to\('cuda'\)"):
        engine.build(linear(), None, [(X,)], "cuda")
    assert engine.state is EngineState.INIT


def test_the_second_set_of_names_is_the_same_objects() -> None:
    assert engines.Backend is Engine
    assert engines.BackendConfig is engines.EngineConfig
    assert engines.BackendState is EngineState
    for name in ("Inductor", "AO", "TensorRT"):
        theirs = name if name == "TensorRT" else f"Torch{name}"
        ours = f"Torch{name}" if name == "AO" else name
        for kind in ("", "Config"):
            assert getattr(engines, f"{theirs}Backend{kind}") is getattr(
                engines, f"{ours}Engine{kind}"
            )


def engine_output(engine: Engine) -> Tensor:
    output = engine.infer(X)
    assert isinstance(output, Tensor)
    return output
