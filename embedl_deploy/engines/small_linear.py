"""Spells the smallest quantized linear layers as convolutions, whose int8 kernel is found."""

import math

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from embedl_deploy.engines.integer_graph import attribute, is_quantized_product, operation
from embedl_deploy.graph.nodes import shape_of
from embedl_deploy.graph.values import infer_value

_SMALL = 16


def spell_small_linears(graph_module: GraphModule) -> None:
    """Turns quantized linear layers on one row, with few weights, into 1×1 convolutions. Exact.

    Inductor writes a product of one row out in float arithmetic, before it looks for int8
    kernels, if it has one column or at most 16 rows and columns.

    Source: torch/_inductor/decomposition.py, ``addmm`` and ``mm``.
    """
    for node in tuple(graph_module.graph.nodes):
        if operation(node) == "linear" and is_quantized_product(node) and _is_written_out(node):
            _respell(graph_module, node)
    graph_module.graph.eliminate_dead_code()


def _is_written_out(node: Node) -> bool:
    activation, weight = node.args[0], node.args[1]
    assert isinstance(activation, Node)
    assert isinstance(weight, Node)
    shape, weights = shape_of(activation), shape_of(weight)
    if shape is None or weights is None or not all(isinstance(size, int) for size in shape):
        return False
    direct = operation(activation) == "dequantize_per_tensor" and (
        operation(weight) == "dequantize_per_channel"
    )
    rows = math.prod(int(size) for size in shape[:-1])
    return direct and rows == 1 and (weights[0] == 1 or max(weights) <= _SMALL)


def _respell(graph_module: GraphModule, node: Node) -> None:
    dequantized, weight = node.args[0], node.args[1]
    bias = node.args[2] if len(node.args) > 2 else None
    assert isinstance(dequantized, Node)
    assert isinstance(weight, Node)
    codes, weight_codes = dequantized.args[0], weight.args[0]
    assert isinstance(codes, Node)
    assert isinstance(weight_codes, Node)
    result = shape_of(node)
    assert result is not None
    columns, rows = attribute(graph_module, str(weight_codes.target)).shape
    name = _register(graph_module, str(weight_codes.target))
    view = torch.ops.aten.view.default
    graph = graph_module.graph
    with graph.inserting_before(node):
        image = graph.call_function(view, (codes, [1, rows, 1, 1]))
        image_values = graph.node_copy(dequantized)
        image_values.args = (image, *dequantized.args[1:])
        kernel = graph.get_attr(name)
        kernel_values = graph.node_copy(weight)
        kernel_values.args = (kernel, *weight.args[1:])
        product = graph.call_function(
            torch.ops.aten.conv2d.default, (image_values, kernel_values, bias)
        )
        output = graph.call_function(view, (product, [*result[:-1], columns]))
    for new in (image, image_values, kernel, kernel_values, product, output):
        new.meta = {key: value for key, value in node.meta.items() if key != "val"}
        new.meta["val"] = infer_value(new)
    node.replace_all_uses_with(output)
    graph.erase_node(node)


def _register(graph_module: GraphModule, path: str) -> str:
    codes: Tensor = attribute(graph_module, path)
    name = f"_kernel_of_{path.replace('.', '_')}"
    graph_module.register_buffer(name, codes[:, :, None, None].contiguous())
    return name
