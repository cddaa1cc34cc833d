"""Spells a quantized graph the way Inductor's int8 kernels on x86 are found in it."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import dtype_of, value_of
from embedl_deploy.graph.values import infer_value

_SHIFT = 128
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
VIEWS = frozenset(
    {"view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "flatten"}
)
FLOAT_AT_RUN_TIME = (
    "computes in float where a scale is computed at run time: take the torchao engine, or inductor "
    "for one scale per tensor"
)
_CASTS = frozenset({"to", "_to_copy", "convert_element_type", "contiguous", "clone"})
_PRODUCTS = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "linear", "mm", "addmm", "matmul", "bmm"}
)


def operation(node: Node) -> str:
    """Returns the name of the ATen or other library operation without its overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return getattr(packet, "__name__", "") if node.op == "call_function" else ""


def is_quantized(graph_module: GraphModule) -> bool:
    """Tells whether the graph quantizes or dequantizes anything."""
    return any(is_quantization(node) for node in graph_module.graph.nodes)


def is_scaled_at_run_time(node: Node) -> bool:
    """Tells whether ``node`` quantizes or dequantizes with a scale that the graph computes."""
    if not is_quantization(node) or not operation(node).endswith(("per_tensor", "per_token")):
        return False
    return isinstance(node.args[1], Node) and node.args[1].op != "get_attr"


def is_quantization(node: Node) -> bool:
    """Tells whether ``node`` is a quantize or dequantize operation."""
    return getattr(node.target, "namespace", "") == "quantized_decomposed"


def rounds_to_float8(node: Node) -> bool:
    """Tells whether ``node`` casts to float8: how ``convert`` spells the rounding of activations.

    A weight that lies there in float8 is storage, and its cast to a wider type no rounding.
    """
    if node.op != "call_function" or dtype_of(node) not in FLOAT8:
        return False
    read = [dtype_of(value) for value in node.all_input_nodes]
    return any(dtype is not None and dtype not in FLOAT8 for dtype in read)


def is_float8(node: Node) -> bool:
    """Tells whether ``node`` is float8; a graph that was read from a file records no values."""
    if dtype_of(node) in FLOAT8:
        return True
    if operation(node) in _CASTS:
        return any(argument in FLOAT8 for argument in node.args)
    owner = node.graph.owning_module
    if node.op == "get_attr" and owner is not None:
        return attribute(owner, str(node.target)).dtype in FLOAT8
    return operation(node) in VIEWS and is_float8(node.all_input_nodes[0])


def widened_float8(node: Node) -> Node | None:
    """Returns what a step from float8 codes to their values reads: a cast, or the scale behind it.

    None if ``node`` is no such step.
    """
    read = node.args[0] if node.args and node.op == "call_function" else None
    if not isinstance(read, Node) or is_float8(node):
        return None
    if operation(node) in _CASTS and is_float8(read):
        return read
    if operation(node) == "mul":
        return read if operation(read) in _CASTS and widened_float8(read) is not None else None
    return None


def quantized_products(graph_module: GraphModule) -> list[Node]:
    """Returns the products whose two operands are dequantized: each should be one int8 kernel."""
    return [node for node in graph_module.graph.nodes if is_quantized_product(node)]


def is_quantized_product(node: Node) -> bool:
    """Tells whether ``node`` multiplies dequantized activations by dequantized weights."""
    if operation(node) not in _PRODUCTS:
        return False
    operands = [source(argument) for argument in node.args if isinstance(argument, Node)]
    return sum(operation(operand).startswith("dequantize_per_") for operand in operands) >= 2


def source(node: Node) -> Node:
    """Returns what ``node`` is a view or cast of, itself if it is neither."""
    while operation(node) in VIEWS | _CASTS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def spell_unsigned(graph_module: GraphModule) -> None:
    """Respells int8 activations as uint8: every value and zero point moves up by 128.

    Exact: ``(q + 128) - (zero_point + 128)`` is what it was. Inductor's convolutions on x86
    compile for int8 activations and then fail when they run.
    """
    for node in tuple(graph_module.graph.nodes):
        if operation(node) != "quantize_per_tensor" or node.args[-1] is not torch.int8:
            continue
        if is_scaled_at_run_time(node):
            continue
        readers = list(_readers(node))
        if all(operation(reader) == "dequantize_per_tensor" for reader in readers):
            for moved in (node, *readers):
                _move_up(moved)
    _refresh(graph_module)


def shorten_zero_points(graph_module: GraphModule) -> None:
    """Gives the weights' zero points as int32, the type that Inductor's kernels read."""
    short: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        if operation(node) != "dequantize_per_channel":
            continue
        zero_points = node.args[2]
        if not isinstance(zero_points, Node) or zero_points.op != "get_attr":
            continue
        path = str(zero_points.target)
        tensor = attribute(graph_module, path)
        if path not in short and tensor.dtype == torch.int64:
            short[path] = f"_short_zero_point_{len(short)}"
            graph_module.register_buffer(short[path], tensor.to(torch.int32))
        if path in short:
            with graph_module.graph.inserting_before(node):
                replacement = graph_module.graph.get_attr(short[path])
            replacement.meta["val"] = infer_value(replacement, _mode(node))
            node.replace_input_with(zero_points, replacement)
    graph_module.graph.eliminate_dead_code()


def _mode(node: Node) -> FakeTensorMode | None:
    return detect_fake_mode(value_of(node))


def attribute(graph_module: GraphModule, path: str) -> Tensor:
    """Returns the parameter or buffer at ``path``."""
    value: object = graph_module
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, Tensor)
    return value


def _readers(node: Node) -> Iterator[Node]:
    for user in node.users:
        if operation(user) in VIEWS:
            yield from _readers(user)
        else:
            yield user


def _move_up(node: Node) -> None:
    data, scale, zero_point, quant_min, quant_max, *_ = node.args
    assert isinstance(zero_point, int)
    assert isinstance(quant_min, int)
    assert isinstance(quant_max, int)
    moved = (zero_point + _SHIFT, quant_min + _SHIFT, quant_max + _SHIFT)
    node.args = (data, scale, *moved, torch.uint8)


def _refresh(graph_module: GraphModule) -> None:
    """Records the values of quantized tensors anew, whose type changed."""
    for node in graph_module.graph.nodes:
        if dtype_of(node) is torch.int8 and node.op == "call_function":
            node.meta["val"] = infer_value(node)
