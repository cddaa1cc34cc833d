from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from embedl_deploy import transform
from embedl_deploy.backend import use_backend
from embedl_deploy.errors import OutputPathError, PreconditionError
from embedl_deploy.export import export_onnx
from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantize import (
    Precision,
    QuantConfig,
    TensorQuantConfig,
    convert,
    quantize,
)

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, *, gain: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3))) * gain}


def operations(path: Path) -> list[str]:
    onnx = pytest.importorskip("onnx")
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def test_writes_a_quantized_model_with_its_scales_and_dynamic_batch(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, gain = Network().eval(), torch.tensor([2.0])
    shapes = {"x": {0: Dim("batch", min=2, max=16)}, "gain": None}
    with use_backend("inductor"):
        fused = transform(model, (X,), {"gain": gain}, dynamic_shapes=shapes).model.eval()
        quantized = quantize(
            fused, (X,), kwargs={"gain": gain}, forward_loop=lambda m: m(X, gain=gain)
        )

    path = export_onnx(quantized, (X,), tmp_path / "model.onnx", {"gain": gain})

    assert operations(path).count("QuantizeLinear") == 2
    other = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": other.numpy(), "gain": gain.numpy()})
    with torch.no_grad():
        expected = quantized(other, gain=gain)["logits"]
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-2)


def test_needs_eval_mode() -> None:
    with pytest.raises(PreconditionError, match=r"call model.eval\(\)"):
        export_onnx(nn.Linear(2, 2).train(), (torch.randn(1, 2),), "never.onnx")


def test_names_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "model.onnx"

    with pytest.raises(OutputPathError, match="cannot write"):
        export_onnx(nn.Linear(2, 2).eval(), (torch.randn(1, 2),), path)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(32, 64, 3)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


class Narrow(nn.Module):
    def __init__(self, limits: tuple[int, int], dtype: torch.dtype, scale: float = 0.05) -> None:
        super().__init__()
        self.limits, self.dtype, self.scale = limits, dtype, scale

    def forward(self, x: Tensor) -> Tensor:
        ops, ends = decomposed(), (*self.limits, self.dtype)
        codes = ops.quantize_per_tensor.default(x, self.scale, 0, *ends)
        return ops.dequantize_per_tensor.default(codes, self.scale, 0, *ends)


def quantized_chain(activation: Precision, weight: Precision) -> GraphModule:
    torch.manual_seed(0)
    config = QuantConfig(
        activation=TensorQuantConfig(precision=activation), weight=TensorQuantConfig(weight)
    )
    with use_backend("tensorrt"):
        fused = transform(Chain().eval(), (X,)).model.eval()
        return quantize(fused, (X,), config, forward_loop=[(X,)])


def types_of(path: Path) -> dict[str, int]:
    """Returns how many tensors of each type the file stores."""
    onnx = pytest.importorskip("onnx")
    counted: dict[str, int] = {}
    for tensor in onnx.load(str(path)).graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        counted[name] = counted.get(name, 0) + (len(tensor.dims) > 1)
    return {name: count for name, count in counted.items() if count}


def run(path: Path, level: str = "ORT_ENABLE_ALL", x: Tensor = X) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize(
    ("activation", "weight", "stored"),
    [
        (Precision.INT8, Precision.INT8, "INT8"),
        (Precision.INT8, Precision.INT4, "INT4"),
        (Precision.FP8_E4M3, Precision.FP8_E4M3, "FLOAT8E4M3FN"),
    ],
)
def test_codes_have_their_own_type_and_the_values_of_the_converted_graph(
    activation: Precision, weight: Precision, stored: str, tmp_path: Path
) -> None:
    model = quantized_chain(activation, weight)

    path = export_onnx(model, (X,), tmp_path / "model.onnx")

    with torch.no_grad():
        expected = convert(model)(X)
    assert types_of(path) == {stored: 3}
    assert operations(path).count("QuantizeLinear") == 3
    assert operations(path).count("DequantizeLinear") == 6
    assert not {"Cast", "Clip", "Mul"} & set(operations(path))
    assert torch.allclose(run(path, "ORT_DISABLE_ALL"), expected, atol=1e-5)


def test_integer_kernels_stay_within_one_step_of_the_converted_graph(tmp_path: Path) -> None:
    model = quantized_chain(Precision.INT8, Precision.INT8)
    converted = convert(model)
    last = converted.graph.find_nodes(
        op="call_function", target=torch.ops.quantized_decomposed.quantize_per_tensor.default
    )[-1]
    weight = model.get_parameter("head.weight").detach()
    scale = last.args[1]
    assert isinstance(scale, float)
    step = scale * weight.abs().flatten(1).sum(1).amax()  # one step in every input of the head

    path = export_onnx(model, (X,), tmp_path / "model.onnx")

    with torch.no_grad():
        difference = (run(path) - converted(X)).abs().amax()
    assert difference <= step


@pytest.mark.parametrize(
    ("rest", "name"), [(torch.float16, "FLOAT16"), (torch.bfloat16, "BFLOAT16")]
)
def test_the_rest_and_its_scales_are_stored_in_a_short_type(
    rest: torch.dtype, name: str, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = quantized_chain(Precision.INT8, Precision.INT8)

    path = export_onnx(model, (X,), tmp_path / "model.onnx", rest_dtype=rest)

    graph = onnx.load(str(path)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    scales = [stored[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {scale.data_type for scale in scales} == {onnx.TensorProto.DataType.Value(name)}
    assert [node.op_type for node in graph.node].count("Cast") == 1  # the output, back to float32
    if rest is torch.float16:  # ONNX Runtime has no bf16 convolution on the CPU
        with torch.no_grad():
            expected = convert(model)(X)
        assert (run(path, "ORT_DISABLE_ALL") - expected).abs().amax() < 2e-2 * expected.abs().amax()


def test_a_scale_too_small_for_float16_stays_float32(tmp_path: Path) -> None:
    small = X.half() * 4e-6  # 1e-7 is 1.2e-7 in float16
    model = Narrow((-128, 127), torch.int8, scale=1e-7).eval()

    path = export_onnx(model, (small,), tmp_path / "model.onnx")

    assert torch.allclose(run(path, x=small), model(small), rtol=0, atol=1.1e-7)


def test_large_weights_lie_beside_the_file(tmp_path: Path) -> None:
    model = Chain().eval()
    path = export_onnx(model, (X,), tmp_path / "model.onnx", external_data_above=10_000)

    with torch.no_grad():
        expected = model(X)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 20_000 < (tmp_path / "model.onnx.data").stat().st_size
    assert torch.allclose(run(path), expected, atol=1e-5)


def test_codes_narrower_than_their_type_keep_their_limits(tmp_path: Path) -> None:
    for limits, dtype in (((-8, 7), torch.int8), ((-3, 5), torch.int8), ((-9, 900), torch.int16)):
        model = Narrow(limits, dtype).eval()
        path = export_onnx(model, (X,), tmp_path / "model.onnx")
        assert torch.allclose(run(path), model(X), atol=1e-6), limits
