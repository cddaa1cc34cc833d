"""Small networks and their quantized graphs, spelled by hand as ``convert`` spells them."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operations
quantized = torch.ops.quantized_decomposed
aten = torch.ops.aten


Quantized = Callable[..., GraphModule]


@pytest.fixture(name="quantized_graph")
def quantized_graph_fixture() -> Quantized:
    """Takes (module, *inputs, dtype=torch.int8, scale=0.05)."""
    return _quantized_graph


@pytest.fixture(name="residual")
def residual_fixture() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


class Residual(nn.Module):
    """A stem, one residual block and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        return self.head(x.mean((2, 3)))


def _flat(module: nn.Module, *args: Tensor) -> GraphModule:
    exported = torch.export.export(module.eval(), args, strict=False)
    graph_module = exported.module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    return graph_module


def _quantized_graph(
    module: nn.Module, *args: Tensor, dtype: torch.dtype = torch.int8, scale: float = 0.05
) -> GraphModule:
    """Returns ``module`` with every linear and convolution quantized, residuals shared."""
    graph_module = _flat(module, *args)
    codes: dict[Node, Node] = {}
    for node in tuple(graph_module.graph.nodes):
        if node.target in (aten.conv2d.default, aten.linear.default):
            _quantize_product(graph_module, node, codes, dtype, scale)
    for node in tuple(graph_module.graph.nodes):
        if node.target is aten.add.Tensor and node.args[1] in codes:
            node.update_arg(1, _dequantized(graph_module, codes[node.args[1]], node))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _quantize_product(
    graph_module: GraphModule,
    node: Node,
    codes: dict[Node, Node],
    dtype: torch.dtype,
    scale: float,
) -> None:
    graph = graph_module.graph
    activation, weight = node.args[0], node.args[1]
    assert isinstance(activation, Node)
    assert isinstance(weight, Node)
    if activation not in codes:
        limits = (0, -128, 127) if dtype is torch.int8 else (128, 0, 255)
        with graph.inserting_after(activation):
            codes[activation] = graph.call_function(
                quantized.quantize_per_tensor.default, (activation, scale, *limits, dtype)
            )
    value = graph_module.get_parameter(str(weight.target)).detach()
    scales = value.flatten(1).abs().amax(1) / 127
    column = scales.reshape(-1, *[1] * (value.dim() - 1))
    number = sum(name.startswith("codes_") for name, _ in graph_module.named_buffers())
    graph_module.register_buffer(f"codes_{number}", (value / column).round().to(torch.int8))
    graph_module.register_buffer(f"scales_{number}", scales)
    graph_module.register_buffer(f"zeros_{number}", torch.zeros(len(scales), dtype=torch.int64))
    with graph.inserting_before(node):
        operands = [graph.get_attr(f"{kind}_{number}") for kind in ("codes", "scales", "zeros")]
        weights = graph.call_function(
            quantized.dequantize_per_channel.default, (*operands, 0, -128, 127, torch.int8)
        )
    node.update_arg(0, _dequantized(graph_module, codes[activation], node))
    node.update_arg(1, weights)


def _dequantized(graph_module: GraphModule, codes: Node, before: Node) -> Node:
    with graph_module.graph.inserting_before(before):
        return graph_module.graph.call_function(
            quantized.dequantize_per_tensor.default, (codes, *codes.args[1:])
        )
