import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.engines import (
    Engine,
    OnnxRuntimeEngine,
    OnnxRuntimeEngineConfig,
    OpenVINOEngine,
    OpenVINOEngineConfig,
)
from embedl_deploy.errors import BuildError, InputError
from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantize import QuantConfig, TensorQuantConfig, convert, quantize

Quantized = Callable[..., GraphModule]
IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def without_gradients() -> Generator[None]:
    with torch.no_grad():
        yield


def output(engine: Engine, *inputs: Tensor) -> Tensor:
    result = engine.infer(*inputs)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("engine_class", [OnnxRuntimeEngine, OpenVINOEngine])
def test_runs_and_loads_what_it_built(
    engine_class: type[Engine], residual: nn.Module, tmp_path: Path
) -> None:
    engine = engine_class().build(residual, None, [(IMAGE,)], "cpu", tmp_path)

    loaded = engine_class.from_dict(None, engine.to_dict())
    loaded.deploy(None)

    assert torch.allclose(output(engine, IMAGE), residual(IMAGE), atol=1e-5)
    assert torch.equal(output(loaded, IMAGE), output(engine, IMAGE))
    with pytest.raises(InputError, match=r"must be torch.float32\[1, 3, 12, 12\]"):
        engine.infer(IMAGE[:, :, :8])


def test_onnx_runtime_rounds_no_inputs_of_weight_only_products(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    rows = torch.randn(2, 4, 64)
    weights = QuantConfig(activation=None, weight=TensorQuantConfig())
    net = nn.Sequential(nn.Linear(64, 64), nn.GELU()).eval()
    graph = convert(quantize(net, (rows,), weights, freeze_weights=True, backend="inductor"))

    def error(level: dict[str, str] | None) -> float:
        config = OnnxRuntimeEngineConfig(session_options=level, allow_simulated=True)
        engine = OnnxRuntimeEngine(config).build(graph, None, [(rows,)], "cpu", tmp_path)
        return float((output(engine, rows) - graph(rows)).abs().max())

    assert error(None) < 1e-5
    assert error({"session.qdq_matmulnbits_accuracy_level": "4"}) > 1e-3  # theirs, asked for


def test_openvino_runs_quantized_products_on_integers(
    quantized_graph: Quantized, residual: nn.Module
) -> None:
    graph = quantized_graph(residual, IMAGE)

    engine = OpenVINOEngine().build(graph, None, [(IMAGE,)])

    assert sum(engine.kernels.values()) == 4
    assert torch.allclose(output(engine, IMAGE), graph(IMAGE), atol=1e-3)


@pytest.mark.parametrize("properties", [None, {"SNIPPETS_MODE": "DISABLE"}])
def test_openvino_keeps_small_quantized_layers_in_a_row_apart(
    quantized_graph: Quantized, properties: dict[str, str] | None
) -> None:
    """Fused into one kernel, OpenVINO 2026.4 computes them wrongly."""
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    graph = quantized_graph(net, rows)

    engine = OpenVINOEngine(OpenVINOEngineConfig(properties=properties))
    engine.build(graph, None, [(rows,)])

    assert engine.kernels == {"FullyConnected": 2}
    assert torch.allclose(output(engine, rows), graph(rows), atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 64), (2, 5, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_onnx_runtime_runs_quantized_linear_layers_on_integers(
    quantized_graph: Quantized, shape: tuple[int, ...], bias: bool
) -> None:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    layers = nn.Linear(64, 128, bias=bias), nn.GELU(), nn.Linear(128, 64, bias=bias)
    graph = quantized_graph(nn.Sequential(*layers).eval(), rows)

    engine = OnnxRuntimeEngine().build(graph, None, [(rows,)])
    loaded = OnnxRuntimeEngine.from_dict(None, engine.to_dict())
    loaded.deploy(None)

    assert engine.kernels == {"MatMulIntegerToFloat": 2}
    assert torch.allclose(output(engine, rows), graph(rows), atol=1e-4)
    assert torch.equal(output(loaded, rows), output(engine, rows))


def test_onnx_runtime_does_not_simulate_unless_allowed(
    quantized_graph: Quantized, residual: nn.Module, tmp_path: Path
) -> None:
    graph = quantized_graph(residual, IMAGE)

    with pytest.raises(BuildError, match="would run as float arithmetic"):
        OnnxRuntimeEngine().build(graph, None, [(IMAGE,)], "cpu", tmp_path)
    allowed = OnnxRuntimeEngine(OnnxRuntimeEngineConfig(allow_simulated=True))
    allowed.build(graph, None, [(IMAGE,)])

    assert list(tmp_path.iterdir()) == []
    assert torch.allclose(output(allowed, IMAGE), graph(IMAGE), atol=1e-1)


def test_every_thread_of_openvino_gets_its_own_rows() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    engine = OpenVINOEngine().build(module, None, [(torch.randn(4, 16),)])
    inputs = [torch.randn(4, 16) for _ in range(4)]
    expected = [module(x) for x in inputs]
    right: list[bool] = []

    def call(index: int) -> None:
        with torch.no_grad():
            results = [output(engine, inputs[index]) for _ in range(200)]
        right.extend(torch.allclose(one, expected[index], atol=1e-4) for one in results)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert right == [True] * 800


def test_a_provider_that_is_missing_is_named() -> None:
    engine = OnnxRuntimeEngine(OnnxRuntimeEngineConfig(providers=["CUDAExecutionProvider"]))

    with pytest.raises(BuildError, match="has no CUDAExecutionProvider; it has"):
        engine.build(nn.Linear(2, 2).eval(), None, [(torch.randn(1, 2),)])


def test_configurations_reject_what_openvino_lacks() -> None:
    with pytest.raises(ValueError, match="hint must be LATENCY or THROUGHPUT"):
        OpenVINOEngineConfig.from_dict({"hint": "SPEED"})
    with pytest.raises(ValueError, match="rest_dtype must be float32 or bfloat16"):
        OpenVINOEngineConfig(rest_dtype=torch.float16)


class Short(nn.Module):
    """A linear layer on int4 values that are stored as int8."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self) -> None:
        super().__init__()
        codes = torch.arange(64).reshape(4, 16) % 16 - 8
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scales", torch.rand(4) + 0.5)
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        ops, ends = decomposed(), (0, -8, 7, torch.int8)
        q = ops.quantize_per_tensor.default(x, 0.25, *ends)
        weight = ops.dequantize_per_channel.default(self.codes, self.scales, self.zeros, *ends)
        return nn.functional.linear(ops.dequantize_per_tensor.default(q, 0.25, *ends), weight)


class Float8(nn.Module):
    """A linear layer on float8 values, as ``convert`` spells it."""

    codes: Tensor
    scales: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(4, 16).to(torch.float8_e4m3fn))
        self.register_buffer("scales", torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        q = (x * 4.0).clamp(-448, 448).to(torch.float8_e4m3fn)
        weight = self.codes.to(torch.float32) * self.scales.reshape(-1, 1)
        return nn.functional.linear(q.to(torch.float32) * 0.25, weight)


def test_int4_values_run_in_int8_kernels_within_their_limits() -> None:
    module, x = Short().eval(), 3 * torch.randn(2, 16)

    engine = OpenVINOEngine().build(module, None, [(x,)])

    assert sum(engine.kernels.values()) == 1
    assert torch.allclose(output(engine, x), module(x), atol=1e-4)


def test_float8_products_are_not_simulated() -> None:
    x = torch.randn(2, 16)

    with pytest.raises(BuildError):
        OnnxRuntimeEngine().build(Float8().eval(), None, [(x,)])
    with pytest.raises(BuildError, match="made 0 integer kernels for 1 quantized products"):
        OpenVINOEngine().build(Float8().eval(), None, [(x,)])
