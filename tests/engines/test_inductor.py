import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule
from torch.nn import functional

from embedl_deploy.engines import (
    EngineState,
    InductorEngine,
    InductorEngineConfig,
    count_int8_kernels,
    inductor_programs,
)
from embedl_deploy.engines.inductor_build import require_compiler
from embedl_deploy.engines.inductor_programs import JustInTime
from embedl_deploy.engines.inductor_support import refusal_of
from embedl_deploy.errors import BuildError, InputError
from embedl_deploy.quantize import convert, quantize
from embedl_deploy.transformation import transform

pytestmark = pytest.mark.usefixtures("without_gradients")
Quantized = Callable[..., GraphModule]
# Just in time where it serves as well: an ahead-of-time build takes several seconds.
BF16 = InductorEngineConfig(
    ahead_of_time=False, autocast_enabled=True, autocast_dtype=torch.bfloat16
)
IN_TIME = InductorEngineConfig(ahead_of_time=False)
IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def error(result: object, expected: object) -> float:
    assert isinstance(result, Tensor)
    assert isinstance(expected, Tensor)
    assert result.dtype == expected.dtype
    return float((functional.mse_loss(result, expected) / expected.square().mean()).sqrt())


@pytest.fixture(name="without_gradients")
def without_gradients_fixture() -> Generator[None]:
    with torch.no_grad():
        yield


def feedforward() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 24)).eval()


@pytest.mark.parametrize(("config", "tolerance"), [(None, 1e-5), (BF16, 2e-2)])
def test_every_quantized_product_becomes_an_int8_kernel(
    quantized_graph: Quantized,
    residual: nn.Module,
    config: InductorEngineConfig | None,
    tolerance: float,
) -> None:
    graph = quantized_graph(residual, IMAGE)

    engine = InductorEngine(config).build(graph, None, [(IMAGE,)])

    assert engine.kernels == {"qconv": 3, "qconv_binary": 1}
    assert count_int8_kernels(lambda: engine.infer(IMAGE)) == engine.kernels
    assert error(engine.infer(IMAGE), graph(IMAGE)) < tolerance


def test_linear_layers_become_int8_kernels_just_in_time(quantized_graph: Quantized) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    graph = quantized_graph(feedforward(), x)
    engine = InductorEngine(IN_TIME)

    engine.build(graph, None, [(x,)])

    assert engine.is_jit
    assert engine.kernels == {"qlinear": 2}
    assert count_int8_kernels(lambda: engine.infer(x)) == {"qlinear": 2}
    assert error(engine.infer(x), graph(x)) < 1e-5
    with pytest.raises(InputError, match=r"input 0 must be torch.float32\[2, 5, 16\]"):
        engine.infer(x[:1])


def test_int8_kernels_made_just_in_time_are_there_after_a_rest_and_a_checkpoint(
    quantized_graph: Quantized,
) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    graph = quantized_graph(feedforward(), x)
    engine = InductorEngine(IN_TIME).build(graph, None, [(x,)])
    first = engine.infer(x)

    loaded = InductorEngine.from_dict(graph, engine.to_dict())
    loaded.activate()
    engine.deactivate()
    engine.activate()

    for again in (loaded, engine):
        assert count_int8_kernels(lambda: again.infer(x)) == again.kernels == {"qlinear": 2}  # noqa: B023
        torch.testing.assert_close(again.infer(x), first, rtol=0, atol=0)
    without_form = {k: v for k, v in engine.to_dict().items() if k != InductorEngine.STATE_FORM}
    with pytest.raises(ValueError, match="lacks the form"):
        InductorEngine.from_dict(graph, without_form)


def test_one_package_serves_a_range_of_batches_and_leaves_the_process_as_it_was(
    quantized_graph: Quantized,
) -> None:
    from torch._dynamo.utils import counters
    from torch._inductor import config

    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(
        quantized_graph(feedforward(), x),
        (x,),
        dynamic_shapes=({0: Dim("batch", min=2, max=8)},),
        strict=False,
    )
    graph = exported.module(check_guards=False)
    counters["inductor"]["made by someone else"] = 7
    before = config.get_config_copy()

    engine = InductorEngine().build(graph, None, [(x,)])

    assert config.get_config_copy() == before
    assert counters["inductor"]["made by someone else"] == 7

    assert engine.kernels == {"qlinear": 2}
    other = torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
    assert error(engine.infer(other), graph(other)) < 1e-5
    with pytest.raises(InputError, match=r"float32\[2\.\.8, 16\], got torch.float32\[9, 16\]"):
        engine.infer(torch.randn(9, 16))


def test_quantization_without_a_kernel_fails_the_build(
    quantized_graph: Quantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    graph = quantized_graph(nn.Linear(16, 8).eval(), x)
    # Without the respelling Inductor writes this product out in float arithmetic.
    monkeypatch.setattr(inductor_programs, "spell_small_linears", id)

    with pytest.raises(BuildError, match="made 0 int8 kernels for 1 quantized products"):
        InductorEngine(IN_TIME).build(graph, None, [(x,)])
    allowed = InductorEngine(InductorEngineConfig(ahead_of_time=False, allow_simulated=True))
    allowed.build(graph, None, [(x,)])

    assert allowed.simulated == 1


@contextmanager
def one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "around",
    [one_thread, torch.inference_mode, partial(torch.autocast, "cpu", dtype=torch.bfloat16)],
)
@pytest.mark.parametrize("given", ["as built", "other strides", "with gradient"])
def test_int8_kernels_stay_whatever_the_process_does(
    quantized_graph: Quantized, around: Callable[[], AbstractContextManager[None]], given: str
) -> None:
    """Torch would compile anew for each of these, without int8 kernels."""
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    graph = quantized_graph(feedforward(), x)
    engine = InductorEngine(IN_TIME).build(graph, None, [(x,)])
    expected = graph(x)
    inputs = {
        "as built": x,
        "other strides": x.t().contiguous().t(),
        "with gradient": x.clone().requires_grad_(),
    }

    with around():
        found = engine.infer(inputs[given])
        kernels = count_int8_kernels(lambda: engine.infer(inputs[given]))

    assert sum(kernels.values()) == 2
    assert error(found, expected) < 1e-5


def test_a_quantized_graph_compiled_in_time_takes_declared_sizes_and_keywords() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = feedforward()

        def forward(self, x: Tensor, *, scale: Tensor, double: bool) -> dict[str, Tensor]:
            y = self.layers(x) * scale
            return {"y": y * 2 if double else y}

    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    named = {"scale": torch.full((24,), 0.5), "double": True}
    sizes = {"x": {0: Dim("rows", min=2, max=64)}, "scale": None, "double": None}
    traced = transform(Scaled().eval(), (x,), named, dynamic_shapes=sizes, backend="inductor")
    graph = convert(quantize(traced.model, (x,), forward_loop=[{"x": x, **named}]))

    engine = InductorEngine(IN_TIME).build(graph, None, [((x,), named)])
    rows = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    found = engine.infer(rows, double=True, scale=named["scale"])

    assert isinstance(found, dict)
    assert error(cast("dict[str, Tensor]", found)["y"], graph(rows, **named)["y"]) < 1e-5
    assert sum(count_int8_kernels(lambda: engine.infer(rows, **named)).values()) == 2


def test_modes_that_record_cuda_graphs_are_known() -> None:
    def records(mode: str | None, options: dict[str, object] | None = None) -> bool:
        return JustInTime(
            fullgraph=False, dynamic=None, mode=mode, options=options, autocast_dtype=None
        ).records_cuda_graphs

    assert records("reduce-overhead")
    assert records("max-autotune")
    assert records(None, {"triton.cudagraphs": True})
    assert not records("max-autotune-no-cudagraphs")
    assert not records(None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_calls_keep_their_outputs_on_cuda() -> None:
    module, x = feedforward().cuda(), torch.randn(4, 16, device="cuda")
    with pytest.raises(BuildError, match="a package holds no CUDA graphs"):
        InductorEngine(InductorEngineConfig(mode="reduce-overhead")).build(
            module, None, [(x,)], "cuda"
        )
    config = InductorEngineConfig(mode="reduce-overhead", ahead_of_time=False)
    engine = InductorEngine(config).build(module, None, [(x,)], "cuda")

    kept = [engine.infer(factor * x) for factor in (1.0, 2.0, 3.0, 4.0)]

    assert all(
        error(found, module(factor * x)) < 1e-3
        for found, factor in zip(kept, (1.0, 2.0, 3.0, 4.0), strict=True)
    )


def test_the_smallest_linear_layers_get_int8_kernels(quantized_graph: Quantized) -> None:
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    graph = quantized_graph(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)).eval(), x)

    engine = InductorEngine(IN_TIME).build(graph, None, [(x,)])

    assert engine.kernels == {"qconv": 2}
    assert error(engine.infer(x), graph(x)) < 1e-5


def test_a_product_of_activations_is_refused(quantized_graph: Quantized) -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    graph = quantized_graph(feedforward(), x)
    product = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.linear.default)
    product.update_arg(1, product.args[0])

    refusal = refusal_of(product)

    assert refusal is not None
    assert "weights quantized per channel" in refusal.reason
    assert refusal.node is product


def test_quantization_on_another_device_is_left_to_torchao(quantized_graph: Quantized) -> None:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    graph = quantized_graph(feedforward(), x)
    for node in graph.graph.nodes:
        node.meta["val"] = torch.empty(2, 16, device="meta")

    refusals = [refusal_of(node) for node in graph.graph.nodes]

    reasons = [refusal.reason for refusal in refusals if refusal is not None]
    assert {reason.rpartition(": ")[2] for reason in reasons} == {
        "take the torchao engine for its products"
    }
    assert len(reasons) == 2 * 4  # each layer's quantizer, two dequantizers and product


@dataclass(frozen=True)
class Declared:
    dynamic_shapes: object


def test_declared_sizes_are_compiled_once_just_in_time() -> None:
    from torch._dynamo.utils import counters

    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    module = feedforward()
    spec = Declared(({0: Dim("batch", min=2, max=8)},))
    engine = InductorEngine(IN_TIME).build(module, spec, [(x,)])
    compiled = counters["stats"]["unique_graphs"]

    output = engine.infer(x[:3])

    assert counters["stats"]["unique_graphs"] == compiled
    assert error(output, module(x[:3])) < 1e-5


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()  # pyright: ignore[reportPrivateUsage]  # torch's own way
        return x + 1


def test_a_graph_break_is_an_error_where_the_full_graph_is_asked_for() -> None:
    engine = InductorEngine(InductorEngineConfig(ahead_of_time=False, fullgraph=True))

    with pytest.raises(BuildError, match="Inductor cannot compile the module"):
        engine.build(Broken(), None, [(torch.ones(2),)])
    assert engine.state is EngineState.INIT


def test_plain_nodes_are_taken() -> None:
    graph = torch.fx.symbolic_trace(feedforward())

    assert [InductorEngine().supports(node) for node in graph.graph.nodes] == [None] * 5


def test_autocast_keeps_the_output_type() -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    module = feedforward()

    engine = InductorEngine(BF16).build(module, None, [(x,)])

    assert 1e-5 < error(engine.infer(x), module(x)) < 2e-2


def test_a_fresh_process_computes_the_same_bytes(tmp_path: Path) -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    config = InductorEngineConfig(autocast_enabled=True)
    engine = InductorEngine(config).build(feedforward(), None, [(x,)], "cpu", tmp_path)
    state = engine.to_dict()
    torch.save(
        {"state": {k: v for k, v in state.items() if k != "package"}, "x": x}, tmp_path / "s"
    )
    code = (
        "import sys, torch; from pathlib import Path; from embedl_deploy.engines import *;"
        "torch.set_num_threads(1); saved = torch.load(sys.argv[1]);"
        "state = {**saved['state'], 'package': Path(sys.argv[2])};"
        "engine = InductorEngine.from_dict(None, state); engine.deploy(None);"
        "print(engine.infer(saved['x']).numpy().tobytes().hex())"
    )

    printed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s"), str(state["package"])],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    output = engine.infer(x)
    assert isinstance(output, Tensor)
    assert printed == output.numpy().tobytes().hex()


def test_a_missing_compiler_is_named() -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(BuildError, match=r"no C\+\+ compiler|found none \(tried no-such-compiler\)"),
    ):
        require_compiler()


def test_ahead_of_time_needs_a_sample() -> None:
    with pytest.raises(BuildError, match="needs a sample"):
        InductorEngine().build(feedforward(), None, [])
