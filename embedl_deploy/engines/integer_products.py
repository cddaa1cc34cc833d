"""Runs the quantized linear layers of a graph on integers, with the scales that the graph has."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from embedl_deploy.engines.float8_products import unfit_rounding
from embedl_deploy.engines.integer_graph import (
    VIEWS,
    attribute,
    is_quantization,
    is_quantized_product,
    is_scaled_at_run_time,
    operation,
    quantized_products,
    rounds_to_float8,
)
from embedl_deploy.engines.integer_linear import (
    DynamicIntegerLinear,
    IntegerLinear,
    WeightCodes,
)
from embedl_deploy.errors import BuildError
from embedl_deploy.graph.nodes import dtype_of, value_of

_CODES = (torch.int8, torch.uint8)
_CUBLAS_STEP = 8
_ACTIVATIONS = ("dequantize_per_tensor", "dequantize_per_token")


def unfit_quantization(node: Node) -> str | None:
    """Returns why a quantize, dequantize or quantized product has no integer kernel here.

    A quantizer is taken where every product that reads its codes is.
    """
    if rounds_to_float8(node):
        return unfit_rounding(node)
    if is_quantized_product(node):
        return _unfit_product(node)
    if not is_quantization(node):
        return None
    products = list(_readers(node))
    if not products:
        return f"nothing reads the codes of {node.name}"
    unread = next((one for one in products if not is_quantized_product(one)), None)
    if unread is not None:
        return (
            "torchao's integer kernels are for linear layers between quantized activations and "
            f"weights, these codes are read by {operation(unread) or unread.op}"
        )
    return next((reason for one in products if (reason := _unfit_product(one))), None)


def put_integer_layers(graph_module: GraphModule) -> int:
    """Replaces each quantized linear layer by an ``IntegerLinear``, in place; returns how many.

    Raises:
        BuildError: A quantized product is none that integers can run.
    """
    products = quantized_products(graph_module)
    for node in products:
        reason = _unfit_product(node) or _uneven(graph_module, node)
        if reason is not None:
            raise BuildError(f"{node.name} would run as float arithmetic: {reason}")
        _replace(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    _require_none_left(graph_module)
    graph_module.recompile()
    return len(products)


def _require_none_left(graph_module: GraphModule) -> None:
    """What is dequantized and no integer layer reads would be multiplied in float."""
    for node in graph_module.graph.nodes:
        if operation(node).startswith("dequantize_per_"):
            raise BuildError(
                f"{node.name} would feed float arithmetic: no integer product in this subgraph "
                "reads its codes"
            )


def _readers(node: Node) -> Iterator[Node]:
    """Yields what computes with the values that ``node``'s codes stand for."""
    for user in node.users:
        if operation(user) in VIEWS or is_quantization(user):
            yield from _readers(user)
        else:
            yield user


def _unfit_product(node: Node) -> str | None:
    if operation(node) != "linear":
        return f"torchao's integer kernel is for linear layers, this is {operation(node)}"
    weight = node.args[1]
    dequantized, views = _behind_views(node.args[0])
    if operation(dequantized) not in _ACTIVATIONS or _codes_of(dequantized) not in _CODES:
        return "the integer kernel takes activations of int8 or uint8 codes with one scale"
    if is_scaled_at_run_time(dequantized):
        if views:
            return "the activation is reshaped between its scale at run time and the product"
    elif any(isinstance(value, Node) for value in _scale_of(dequantized)):
        return "the integer kernel takes a constant scale as a literal, this is a tensor"
    if any(operation(view) not in VIEWS for view in views):
        return "the activation is cast between its codes and the product"
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, Node) and bias.op != "get_attr":
        return "the integer kernel takes a constant bias"
    return _unfit_weight(weight)


def _unfit_weight(weight: object) -> str | None:
    if not isinstance(weight, Node) or operation(weight) != "dequantize_per_channel":
        return "the integer kernel takes weights with one scale per output channel"
    codes = weight.args[0]
    if not isinstance(codes, Node) or codes.op != "get_attr" or weight.args[3] != 0:
        return "the integer kernel takes constant weights, quantized along their first axis"
    if _codes_of(weight) is not torch.int8:
        return f"the integer kernel takes int8 codes of weights, these are {_codes_of(weight)}"
    value = value_of(codes)
    if not isinstance(value, Tensor) or value.device.type != "cuda":
        return None
    if any(size % _CUBLAS_STEP for size in value.shape):
        return (
            f"cuBLAS multiplies integers whose sizes are multiples of {_CUBLAS_STEP}, the weight "
            f"{codes.target} is {list(value.shape)}"
        )
    return None


def _uneven(graph_module: GraphModule, node: Node) -> str | None:
    weight = node.args[1]
    assert isinstance(weight, Node)
    if _read(graph_module, weight.args[2]).any():
        return "the integer kernel takes weights whose zero points are 0"
    return None


def _behind_views(value: object) -> tuple[Node, list[Node]]:
    """Returns what ``value`` is views of, and these from the last to the first."""
    assert isinstance(value, Node)
    views: list[Node] = []
    while not is_quantization(value) and len(value.all_input_nodes) == 1:
        views.append(value)
        value = value.all_input_nodes[0]
    return value, views


def _codes_of(dequantized: Node) -> object:
    return next((arg for arg in dequantized.args if isinstance(arg, torch.dtype)), None)


def _scale_of(dequantized: Node) -> tuple[object, object]:
    return dequantized.args[1], dequantized.args[2]


def _replace(graph_module: GraphModule, node: Node) -> None:
    dequantized, views = _behind_views(node.args[0])
    weight = node.args[1]
    assert isinstance(weight, Node)
    scale, zero_point = _scale_of(dequantized)
    bias = node.args[2] if len(node.args) > 2 else None
    numbers = WeightCodes(
        _read(graph_module, weight.args[0]),
        _read(graph_module, weight.args[1]),
        None if bias is None else _read(graph_module, bias),
        _codes_of(dequantized) is torch.uint8,
        dtype_of(node) or torch.float32,
    )
    at_run_time: tuple[Node, ...] = ()
    if isinstance(scale, Node) and isinstance(zero_point, Node):
        layer, at_run_time = DynamicIntegerLinear(numbers), (scale, zero_point)
    else:
        assert isinstance(scale, float)
        assert isinstance(zero_point, int)
        layer = IntegerLinear(numbers, scale, zero_point)
    name = f"_integers_of_{node.name}"
    graph_module.add_submodule(name, layer)
    graph = graph_module.graph
    with graph.inserting_before(node):
        codes = dequantized.args[0]
        assert isinstance(codes, Node)
        for view in reversed(views):
            copied = graph.node_copy(view)
            copied.replace_input_with(view.all_input_nodes[0], codes)
            copied.meta.pop("val", None)
            codes = copied
        call = graph.call_module(name, (codes, *at_run_time))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.erase_node(node)


def _read(graph_module: GraphModule, node: object) -> Tensor:
    assert isinstance(node, Node)
    return attribute(graph_module, str(node.target)).detach()
