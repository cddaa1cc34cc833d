"""What ONNX Runtime is asked for, by a library that notes it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from embedl_deploy.engines import OnnxRuntimeEngine, OnnxRuntimeEngineConfig, onnxruntime
from embedl_deploy.engines.onnx_providers import (
    chosen_providers,
    compiling_providers,
    provider_options,
)
from embedl_deploy.errors import BuildError

CPU, SECOND = torch.device("cpu"), torch.device("cuda:1")
CPU_ONLY, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Options:
    """Session options; has the path of an optimized graph only once it is set."""

    optimized_model_filepath: str

    def add_session_config_entry(self, name: str, value: str) -> None: ...


class Session:
    """Gives back what it is fed."""

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x")]

    def run(self, names: None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        del names
        return list(feed.values())


class Noting:
    """An ONNX Runtime of three providers that notes what it opens and copies graphs as they are."""

    SessionOptions = Options

    def __init__(self) -> None:
        self.written: list[bool] = []
        self.asked: list[dict[str, object]] = []

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU_ONLY]

    def InferenceSession(  # noqa: N802  # the library's name
        self, path: str, options: Options, **asked: object
    ) -> Session:
        target = getattr(options, "optimized_model_filepath", None)
        self.written.append(target is not None)
        self.asked.append(asked)
        if target is not None:
            onnx.save(onnx.load(path), target)
        return Session()


@pytest.fixture(name="library")
def library_fixture(monkeypatch: pytest.MonkeyPatch) -> Noting:
    library = Noting()
    monkeypatch.setattr(onnxruntime, "_import_runtime", lambda: library)
    return library


class OnMeta(OnnxRuntimeEngine):
    """Builds for meta tensors, which stand for another device."""

    device_types = ("cpu", "cuda", "meta")


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 4).eval()


def config(*providers: str, allow_simulated: bool = False) -> OnnxRuntimeEngineConfig:
    return OnnxRuntimeEngineConfig(list(providers), allow_simulated=allow_simulated)


def test_the_provider_of_the_device_runs_unless_others_are_named() -> None:
    assert chosen_providers(None, CPU) == [CPU_ONLY]
    assert chosen_providers(None, SECOND) == [CUDA]
    assert chosen_providers([TENSORRT, CUDA], CPU) == [TENSORRT, CUDA]


def test_providers_on_cuda_get_the_number_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [TENSORRT, CUDA, CPU_ONLY]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)

    assert provider_options(names, SECOND) == [{"device_id": "1"}, {"device_id": "1"}, {}]
    assert provider_options([CUDA], torch.device("cuda")) == [{"device_id": "3"}]
    assert provider_options(names, CPU) == [{}, {}, {}]


def test_only_graphs_of_onnx_runtimes_own_kernels_can_be_written() -> None:
    assert compiling_providers([CUDA, CPU_ONLY]) == []
    assert compiling_providers([TENSORRT, "MyExecutionProvider", CUDA]) == [
        TENSORRT,
        "MyExecutionProvider",
    ]


def test_options_go_along_with_the_providers(library: Noting) -> None:
    engine = OnnxRuntimeEngine(config(CUDA, CPU_ONLY))

    engine.build(linear(), None, [(X,)], "cuda:1")

    asked = library.asked[0]
    assert asked["providers"] == [CUDA, CPU_ONLY]
    assert asked["provider_options"] == [{"device_id": "1"}, {}]
    assert asked["enable_fallback"] == 0


def test_the_optimized_graph_is_written_only_where_kernels_are_counted(
    library: Noting, quantized_graph: Callable[..., GraphModule], tmp_path: Path
) -> None:
    graph = quantized_graph(linear(), X)
    counted = OnnxRuntimeEngine(config(CPU_ONLY, allow_simulated=True))

    counted.build(graph, None, [(X,)], "cpu", tmp_path)
    counted.deactivate()
    counted.activate()
    OnnxRuntimeEngine.from_dict(None, counted.to_dict()).deploy(None)
    OnnxRuntimeEngine().build(linear(), None, [(X,)], "cpu", tmp_path)

    assert library.written == [True, False, False, False]


def test_what_compiles_nodes_runs_quantized_graphs_only_if_simulation_is_allowed(
    library: Noting, quantized_graph: Callable[..., GraphModule], tmp_path: Path
) -> None:
    graph = quantized_graph(linear(), X)

    with pytest.raises(BuildError, match="does not tell whether TensorrtExecutionProvider runs"):
        OnnxRuntimeEngine(config(TENSORRT)).build(graph, None, [(X,)], "cpu", tmp_path)
    allowed = OnnxRuntimeEngine(config(TENSORRT, allow_simulated=True))
    allowed.build(graph, None, [(X,)], "cpu", tmp_path)
    OnnxRuntimeEngine(config(TENSORRT)).build(linear(), None, [(X,)], "cpu", tmp_path)

    assert allowed.kernels == {}
    assert library.written == [False, False]


def test_outputs_lie_on_the_device_of_the_engine(library: Noting) -> None:
    engine = OnMeta(config(CPU_ONLY)).build(linear(), None, [(X,)], "meta")

    (output,) = engine._run([X])  # pyright: ignore[reportPrivateUsage]  # an input that lies elsewhere

    assert output.is_meta
    assert len(library.written) == 1
