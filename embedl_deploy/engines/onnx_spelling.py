"""Spells a flat graph so that its ONNX file carries codes and the types of the rest itself."""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from embedl_deploy.engines.integer_graph import (
    attribute,
    is_quantized_product,
    operation,
    source,
)
from embedl_deploy.engines.rest_dtype import cast_rest
from embedl_deploy.graph.nodes import dtype_of
from embedl_deploy.graph.values import infer_value
from embedl_deploy.quantization.quantize_dequantize import decomposed

_CASTS = frozenset({"to", "_to_copy", "convert_element_type"})
_FLOAT8 = {torch.float8_e4m3fn: 448, torch.float8_e5m2: 57344}
"""The largest value of each type."""


def spell_for_onnx(graph_module: GraphModule, rest_dtype: torch.dtype | None) -> bool:
    """Respells float8 as quantize and dequantize, and casts the rest; tells whether it did.

    The graph is then read by the exporter only: torch's own kernels of these operations round to
    integers, which float8 codes are not. In a short ``rest_dtype`` weights are stored, and
    dequantized tensors come out, in that type: no cast stands between a product and its codes.
    """
    changed = _spell_float8(graph_module)
    if rest_dtype is not None and rest_dtype is not torch.float32:
        cast_rest(graph_module, rest_dtype)
        _fold_casts(graph_module)
        changed = True
    if changed:
        graph_module.graph.eliminate_dead_code()
        graph_module.graph.lint()
        graph_module.recompile()
    return changed


def split_quantized_linears(graph_module: GraphModule) -> bool:
    """Respells quantized linear layers as a matrix product and a sum; tells whether it did.

    ONNX Runtime has an integer kernel with float outputs for products of matrices only: not where
    the weight is transposed or a bias comes along, as in what the exporter makes of a linear layer.
    """
    products = [node for node in graph_module.graph.nodes if operation(node) == "linear"]
    split = [node for node in products if is_quantized_product(node)]
    transposed: dict[str, str] = {}
    done = [_split_linear(graph_module, node, transposed) for node in split]
    if any(done):
        graph_module.graph.eliminate_dead_code()
        graph_module.graph.lint()
        graph_module.recompile()
    return any(done)


def _split_linear(graph_module: GraphModule, linear: Node, transposed: dict[str, str]) -> bool:
    x, weight, *rest = linear.args
    bias = rest[0] if rest else linear.kwargs.get("bias")
    if not isinstance(weight, Node) or operation(weight) != "dequantize_per_channel":
        return False
    codes = weight.args[0]
    if not isinstance(codes, Node) or codes.op != "get_attr" or weight.args[3] != 0:
        return False
    path = str(codes.target)
    if path not in transposed:
        transposed[path] = f"_transposed_codes_{len(transposed)}"
        tensor = attribute(graph_module, path).detach().t().contiguous()
        graph_module.register_buffer(transposed[path], tensor)
    graph = graph_module.graph
    aten = torch.ops.aten
    with graph.inserting_before(linear):
        stored = graph.get_attr(transposed[path])
        arguments = (stored, *weight.args[1:3], 1, *weight.args[4:])
        dequantize = decomposed().dequantize_per_channel.default
        values = graph.call_function(dequantize, arguments, dict(weight.kwargs))
        found = graph.call_function(aten.matmul.default, (x, values))
        if bias is not None:
            found = graph.call_function(aten.add.Tensor, (found, bias))
    found.meta = dict(linear.meta)
    linear.replace_all_uses_with(found)
    graph.erase_node(linear)
    return True


def _spell_float8(graph_module: GraphModule) -> bool:
    """Finds codes times their scale, codes being weights or a clamped product cast to float8."""
    changed = False
    for node in tuple(graph_module.graph.nodes):
        if operation(node) == "mul" and len(node.args) == 2:
            changed |= _spell_weight(graph_module, node) or _spell_activation(graph_module, node)
    return changed


def _spell_weight(graph_module: GraphModule, product: Node) -> bool:
    codes, scale = _codes_under(product.args[0]), product.args[1]
    if codes is None or codes.op != "get_attr" or not isinstance(scale, Node):
        return False
    scales = source(scale)
    if scales.op != "get_attr":
        return False
    value = dtype_of(product)
    axis = next((i for i, size in enumerate(_shape(scale)) if size != 1), 0)
    if attribute(graph_module, str(scales.target)).dim() != 1 or value is None:
        return False
    _replace(
        graph_module,
        product,
        decomposed().dequantize_per_channel.default,
        (codes, scales, None, axis, *_limits(codes)),
        value,
    )
    return True


def _spell_activation(graph_module: GraphModule, product: Node) -> bool:
    codes, scale = _codes_under(product.args[0]), product.args[1]
    value = dtype_of(product)
    if codes is None or not isinstance(scale, float) or value is None:
        return False
    x = _scaled_input(codes, scale)
    if x is None:
        return False
    limits = _limits(codes)
    quantize, dequantize = decomposed().quantize_per_tensor, decomposed().dequantize_per_tensor
    with graph_module.graph.inserting_before(product):
        quantized = graph_module.graph.call_function(quantize.default, (x, scale, 0, *limits))
    quantized.meta = {**codes.meta, "val": infer_value(quantized)}
    arguments = (quantized, scale, 0, *limits)
    _replace(graph_module, product, dequantize.default, arguments, value)
    return True


def _scaled_input(codes: Node, scale: float) -> Node | None:
    """Returns x where ``codes`` is x / scale, clamped and cast."""
    clamp = _operand(codes) if operation(codes) in _CASTS else None
    scaled = _operand(clamp) if clamp is not None and operation(clamp) == "clamp" else None
    if scaled is None or operation(scaled) != "mul":
        return None
    factor = scaled.args[1]
    fits = isinstance(factor, float) and abs(factor * scale - 1) < 1e-6
    return _operand(scaled) if fits else None


def _codes_under(value: object) -> Node | None:
    """Returns the float8 tensor that ``value`` casts to a wider type."""
    if not isinstance(value, Node) or operation(value) not in _CASTS:
        return None
    codes = _operand(value)
    return codes if codes is not None and dtype_of(codes) in _FLOAT8 else None


def _limits(codes: Node) -> tuple[int, int, torch.dtype]:
    dtype = dtype_of(codes)
    assert dtype is not None, "codes are tensors"
    return -_FLOAT8[dtype], _FLOAT8[dtype], dtype


def _fold_casts(graph_module: GraphModule) -> None:
    """Lets dequantize operations give, and buffers hold, what their casts made of them."""
    for node in tuple(graph_module.graph.nodes):
        if operation(node) != "convert_element_type":
            continue
        read, dtype = node.args
        assert isinstance(read, Node)
        assert isinstance(dtype, torch.dtype)
        if operation(source(read)) in ("dequantize_per_channel_group", "dequantize_per_token"):
            _cast_at_source(graph_module, node, read, dtype)
        elif operation(read).startswith("dequantize_per_"):
            _replace(graph_module, node, read.target, read.args, dtype)
        elif read.op == "get_attr":
            _store(graph_module, node, read, dtype)


def _cast_at_source(graph_module: GraphModule, cast: Node, read: Node, dtype: torch.dtype) -> None:
    """Lets values whose type is an argument, reshaped or not, come out in that of ``cast``."""
    values = source(read)
    if values not in (read, *read.all_input_nodes) or len(values.users) > 1 or len(read.users) > 1:
        return
    _replace(graph_module, values, values.target, (*values.args[:-1], dtype), torch.float32)
    moved = cast.all_input_nodes[0]
    moved.meta["val"] = infer_value(moved)
    cast.replace_all_uses_with(moved)
    graph_module.graph.erase_node(cast)


def _store(graph_module: GraphModule, cast: Node, read: Node, dtype: torch.dtype) -> None:
    name = f"_stored_for_{cast.name}"
    tensor = attribute(graph_module, str(read.target)).detach()
    graph_module.register_buffer(name, tensor.to(dtype))
    with graph_module.graph.inserting_before(cast):
        stored = graph_module.graph.get_attr(name)
    stored.meta = dict(cast.meta)
    cast.replace_all_uses_with(stored)
    graph_module.graph.erase_node(cast)


def _replace(
    graph_module: GraphModule,
    node: Node,
    target: object,
    arguments: tuple[object, ...],
    dtype: torch.dtype,
) -> None:
    """Puts a dequantize operation that gives ``dtype`` in place of ``node``."""
    assert callable(target)
    keywords = {} if dtype is torch.float32 else {"out_dtype": dtype}
    with graph_module.graph.inserting_before(node):
        made = graph_module.graph.create_node("call_function", target, arguments, keywords)  # pyright: ignore[reportArgumentType]  # nodes and literals
    made.meta = {**node.meta, "val": infer_value(made)}
    node.replace_all_uses_with(made)
    graph_module.graph.erase_node(node)


def _operand(node: Node) -> Node | None:
    first = node.args[0] if node.args else None
    return first if isinstance(first, Node) else None


def _shape(node: Node) -> tuple[int, ...]:
    value: object = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
