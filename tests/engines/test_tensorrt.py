"""The routes to TensorRT: their settings, and what is said without the library."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Node

from embedl_deploy import lower, plan_lowering
from embedl_deploy.backend import Backend
from embedl_deploy.engines import TensorRTEngine, TensorRTEngineConfig
from embedl_deploy.engines.engine import EngineState
from embedl_deploy.engines.onnx_file import write_onnx
from embedl_deploy.engines.program import exported_program, flat_graph, form_of
from embedl_deploy.engines.tensorrt_config import with_shared_timings
from embedl_deploy.engines.tensorrt_library import why_not
from embedl_deploy.engines.tensorrt_torch import (
    compile_settings,
    require_no_codes,
    specifications,
)
from embedl_deploy.errors import BuildError, MissingDependencyError
from embedl_deploy.quantization.quantize_dequantize import decomposed

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
without_library = pytest.mark.skipif(
    find_spec("tensorrt") is not None, reason="says what is said where tensorrt is missing"
)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


# --- without the library


@without_library
@pytest.mark.parametrize("route", ["onnx", "torch-tensorrt", "torch-tensorrt-jit"])
def test_a_build_without_the_library_names_the_extra(route: str) -> None:
    engine = TensorRTEngine(TensorRTEngineConfig.from_dict({"route": route}))

    with pytest.raises(MissingDependencyError, match=r"tensorrt .*pip install 'embedl-deploy\[ten"):
        engine.build(two_layers(), None, [(X,)], "cuda")
    assert engine.state is EngineState.INIT


@without_library
def test_a_loaded_engine_says_what_it_lacks_to_run(tmp_path: Path) -> None:
    written = write_onnx(two_layers(), (X,), tmp_path / "model.onnx")
    state = {
        TensorRTEngine.STATE_ENGINE: "TensorRTEngine",
        TensorRTEngine.STATE_CONFIG: TensorRTEngineConfig().to_dict(),
        TensorRTEngine.STATE_DEVICE: "cuda",
        TensorRTEngine.STATE_FILE: tmp_path / "model.engine",
        TensorRTEngine.STATE_FORM: written.form.to_dict(),
        TensorRTEngine.STATE_NAMES: list(written.names),
    }

    engine = TensorRTEngine.from_dict(None, state)

    with pytest.raises(MissingDependencyError, match="route='onnx' needs tensorrt"):
        engine.deploy(None)
    assert engine.state is EngineState.CHECKPOINT_LOADED
    with pytest.raises(ValueError, match="lacks its file, its form or its names"):
        TensorRTEngine.from_dict(None, {**state, TensorRTEngine.STATE_NAMES: None})


@without_library
def test_every_node_is_refused_with_the_missing_package() -> None:
    program = torch.export.export(two_layers(), (X,)).module(check_guards=False)
    assert isinstance(program, GraphModule)

    refusal = TensorRTEngine().supports(next(iter(program.graph.nodes)))

    assert refusal is not None
    assert "tensorrt and polygraphy not installed" in refusal.reason


def test_builds_for_cuda_only() -> None:
    with pytest.raises(ValueError, match="builds for cuda, got cpu"):
        TensorRTEngine().build(two_layers(), None, [(X,)])


def quantize_node(*, zero_point: int = 0, dtype: torch.dtype = torch.int8) -> Node:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    arguments = (x, 0.1, zero_point, 0, 127, dtype)
    node = graph.call_function(decomposed().quantize_per_tensor.default, arguments)  # pyright: ignore[reportArgumentType]
    x.meta["val"] = torch.empty(2, device="meta")
    return node


def test_says_which_codes_tensorrt_lacks() -> None:
    assert why_not(quantize_node()) is None
    assert "zero point is 3" in str(why_not(quantize_node(zero_point=3)))
    assert "these codes are torch.uint8" in str(why_not(quantize_node(dtype=torch.uint8)))
    assert "on meta" in str(why_not(quantize_node().all_input_nodes[0]))


def test_torch_tensorrt_is_not_given_codes_that_it_would_simulate() -> None:
    program = GraphModule(nn.Module(), quantize_node().graph)

    assert why_not(quantize_node(), "onnx") is None
    assert "use route='onnx'" in str(why_not(quantize_node(), "torch-tensorrt"))
    with pytest.raises(BuildError, match="has no layers for the quantize"):
        require_no_codes(program)
    require_no_codes(torch.export.export(two_layers(), (X,)).module(check_guards=False))


# --- configuration


@pytest.mark.parametrize(
    ("values", "because"),
    [
        ({"route": "trtexec"}, "route must be one of onnx, torch-tensorrt"),
        ({"rest_dtype": "torch.int8"}, "rest_dtype must be float16 or bfloat16"),
        ({"optimization_level": 6}, "from 0 to 5, got 6"),
        ({"workspace_bytes": 0}, "above 0, got 0"),
        ({"settings": {"min_block_size": 1}}, "settings are torch-tensorrt's"),
        ({"route": "torch-tensorrt", "cuda_graphs": True}, "cuda_graphs is for route='onnx'"),
        (
            {"route": "torch-tensorrt", "settings": {"workspace_size": 1}},
            "give workspace_bytes in place of the setting workspace_size",
        ),
    ],
)
def test_refuses_what_clashes(values: dict[str, object], because: str) -> None:
    with pytest.raises(ValueError, match=because):
        TensorRTEngineConfig.from_dict(values)


def test_torch_tensorrts_settings_pass_through_and_are_saved() -> None:
    config = TensorRTEngineConfig(
        route="torch-tensorrt",
        rest_dtype=torch.bfloat16,
        refittable=True,
        settings={"min_block_size": 3, "autocast_max_depth_of_reduction": 7},
    )

    read = TensorRTEngineConfig.from_dict(config.to_dict())

    assert compile_settings(read) == {
        "immutable_weights": False,
        "enable_autocast": True,
        "autocast_low_precision_type": torch.bfloat16,
        "min_block_size": 3,
        "autocast_max_depth_of_reduction": 7,
    }
    assert read.key() == config.key() != TensorRTEngineConfig(route="torch-tensorrt").key()


class Gated(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor], *, gate: Tensor) -> Tensor:
        return pair[0] * gate + pair[1]


def test_torch_tensorrt_gets_inputs_in_their_structure_and_the_ranges_that_vary() -> None:
    batch = Dim("batch", min=1, max=16)
    sample = ((torch.randn(2, 8), torch.randn(8)), {"gate": torch.randn(2, 8).half()})
    given = (((sample[0]),), sample[1])
    shapes = {"pair": ({0: batch}, None), "gate": {0: batch}}
    graph = flat_graph(exported_program(Gated().eval(), given, shapes))
    names = [node.name for node in graph.graph.find_nodes(op="placeholder")]

    args, kwargs = specifications(
        given, form_of(graph, given), names, lambda p, dtype: (p.smallest, p.best, p.largest, dtype)
    )

    assert args == [(((1, 8), (2, 8), (16, 8), torch.float32), sample[0][1])]
    assert kwargs == {"gate": ((1, 8), (2, 8), (16, 8), torch.float16)}


def test_builds_into_one_folder_share_their_timings_unless_told_otherwise(tmp_path: Path) -> None:
    own = TensorRTEngineConfig(timing_cache="mine")

    shared = with_shared_timings(TensorRTEngineConfig(), tmp_path)

    assert shared.timing_cache == str(tmp_path / "tensorrt.timings")
    assert with_shared_timings(own, tmp_path) is own
    assert with_shared_timings(own, None) is own
    assert TensorRTEngine.shares_cache


@without_library
def test_asking_for_it_without_its_library_is_an_error_and_a_backend_leaves_it_out() -> None:
    x = torch.randn(2, 4)
    model = nn.Linear(4, 4).eval()

    with pytest.raises(MissingDependencyError, match="TensorRTEngine needs tensorrt"):
        lower(model, (x,), engines=["tensorrt", "eager"])
    plan = plan_lowering(model, (x,), backend=Backend(name="mine", engines=("tensorrt", "eager")))
    assert [part.engine for part in plan.subgraphs] == ["eager"]
