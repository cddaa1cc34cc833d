"""Quantized linear layers on integers, with the scales of the graph."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy import load_lowered, lower
from embedl_deploy.engines.integer_products import put_integer_layers, unfit_quantization
from embedl_deploy.errors import BuildError
from embedl_deploy.quantize import convert, quantize
from embedl_deploy.tracing import trace

Quantized = Callable[..., GraphModule]
aten = torch.ops.aten
ops = torch.ops.quantized_decomposed


@pytest.fixture(autouse=True)
def without_gradients() -> Generator[None]:
    with torch.no_grad():
        yield


def feedforward() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)).eval()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def reasons(graph: GraphModule) -> list[str]:
    found = (unfit_quantization(node) for node in graph.graph.nodes)
    return [reason for reason in found if reason is not None]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("shape", [(1, 64), (4, 64), (2, 17, 64)])
def test_integers_give_the_values_of_the_graph(
    quantized_graph: Quantized, dtype: torch.dtype, shape: Sequence[int]
) -> None:
    x = inputs(*shape)
    graph = quantized_graph(feedforward(), x, dtype=dtype)
    expected = graph(x)

    assert reasons(graph) == []
    assert put_integer_layers(graph) == 2

    targets = [node.target for node in graph.graph.nodes]
    assert aten.linear.default not in targets
    assert ops.dequantize_per_tensor.default not in targets
    torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)


class Pooled(nn.Module):
    """A linear layer on a view of what an asymmetric quantizer made."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(-128, 128, 2).int().to(torch.int8).view(8, 16))
        self.register_buffer("scales", torch.linspace(0.01, 0.02, 8))
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        ends = (0.05, 7, -128, 127, torch.int8)
        q = ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *ends), *ends)
        weight = ops.dequantize_per_channel.default(
            self.codes, self.scales, self.zeros, 0, -128, 127, torch.int8
        )
        return nn.functional.linear(q.flatten(1), weight)


def test_a_zero_point_and_a_view_between_codes_and_product_are_kept() -> None:
    x = inputs(3, 4, 2, 2)
    graph = trace(Pooled().eval(), (x,))
    expected = graph(x)

    assert reasons(graph) == []
    assert put_integer_layers(graph) == 1

    torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({3: 1}, "quantized along their first axis"),
        ({6: torch.uint8}, "takes int8 codes of weights, these are torch.uint8"),
    ],
)
def test_weights_that_the_kernel_does_not_take_are_refused(
    change: dict[int, object], because: str
) -> None:
    graph = trace(Pooled().eval(), (inputs(3, 4, 2, 2),))
    weight = next(n for n in graph.graph.nodes if n.target is ops.dequantize_per_channel.default)
    for position, value in change.items():
        weight.update_arg(position, value)

    assert {because in reason for reason in reasons(graph)} == {True}
    assert len(reasons(graph)) == 4


def test_a_convolution_is_left_to_another_engine(quantized_graph: Quantized) -> None:
    x = inputs(1, 3, 8, 8)
    graph = quantized_graph(nn.Conv2d(3, 8, 3).eval(), x)

    assert len(reasons(graph)) == 4
    assert {reason.split(",")[0] for reason in reasons(graph)} == {
        "torchao's integer kernel is for linear layers"
    }
    with pytest.raises(BuildError, match="conv2d would run as float arithmetic"):
        put_integer_layers(graph)


def test_weights_with_zero_points_are_refused(quantized_graph: Quantized) -> None:
    x = inputs(4, 64)
    graph = quantized_graph(feedforward(), x)
    graph.get_buffer("zeros_1")[3] = 5

    with pytest.raises(BuildError, match=r"linear_1 .* zero points are 0"):
        put_integer_layers(graph)


def test_codes_that_something_else_reads_are_refused(quantized_graph: Quantized) -> None:
    x = inputs(4, 64)
    graph = quantized_graph(feedforward(), x)
    read = next(n for n in graph.graph.nodes if n.target is ops.dequantize_per_tensor.default)
    with graph.graph.inserting_after(read):
        graph.graph.call_function(aten.neg.default, (read,))

    assert "these codes are read by neg" in (unfit_quantization(read) or "")


@pytest.mark.slow
def test_a_quantized_model_is_lowered_saved_and_loaded_with_its_own_scales(tmp_path: Path) -> None:
    x = inputs(4, 64)
    model = quantize(
        feedforward(), (x,), forward_loop=[(x,)], freeze_weights=True, backend="torchao"
    )
    lowered = lower(model, (x,), engines="torchao")
    lowered.save(tmp_path / "model.lowered")

    loaded = load_lowered(tmp_path / "model.lowered")

    assert [dict(part.kernels) for part in lowered.report.subgraphs] == [{"int_mm": 2}]
    assert lowered.report.eager_nodes == ()
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(loaded(x), lowered(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 16, 17, 128])
def test_cuda_multiplies_integers_where_inductor_has_no_kernel(rows: int) -> None:
    x = inputs(rows, 64).cuda()
    model = quantize(
        feedforward().cuda(), (x,), forward_loop=[(x,)], freeze_weights=True, backend="torchao"
    )
    lowered = lower(model, (x,), engines=["inductor", "torchao"])

    assert {dict(part.kernels).get("int_mm", 0) for part in lowered.report.subgraphs} != {0}
    assert any("take the torchao engine" in r.reason for r in lowered.report.refusals)
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_refuses_weights_whose_sizes_cublas_does_not_take() -> None:
    graph = trace(nn.Linear(64, 10).eval().cuda(), (inputs(4, 64).cuda(),))
    quantized = quantize(
        graph, (inputs(4, 64).cuda(),), forward_loop=[(inputs(4, 64).cuda(),)], backend="torchao"
    )

    assert any("multiples of 8" in reason for reason in reasons(convert(quantized)))
