"""Runs the linear layers between float8 codes of a graph in float8, with the graph's scales."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from embedl_deploy.engines.float8_linear import Float8Linear
from embedl_deploy.engines.integer_graph import (
    VIEWS,
    attribute,
    is_float8,
    operation,
    widened_float8,
)
from embedl_deploy.errors import BuildError
from embedl_deploy.graph.nodes import dtype_of, value_of

_CAPABILITY = (8, 9)
_CUBLAS_STEP = 16


@dataclass(frozen=True)
class _Product:
    """A linear layer whose activation and weight lie in float8."""

    node: Node
    codes: Node
    """The activation's codes."""

    views: tuple[Node, ...]
    """Between the codes and the product, the first first."""

    scale: float
    weight: Node
    scales: Node
    """The attribute that holds the weight's scales."""

    bias: Node | None


def lacks_float8(device: torch.device) -> str | None:
    """Returns why a device has no float8 product, None if it has one."""
    needed = ".".join(map(str, _CAPABILITY))
    if device.type != "cuda":
        return (
            "values are rounded to float8, whose kernels (torch._scaled_mm) need a CUDA device of "
            f"compute capability {needed}, this is on {device}"
        )
    found = torch.cuda.get_device_capability(device)
    if found >= _CAPABILITY:
        return None
    return (
        f"values are rounded to float8, whose kernels need compute capability {needed}, this "
        f"device has {found[0]}.{found[1]}"
    )


def unfit_rounding(node: Node) -> str | None:
    """Returns why what reads values rounded to float8 has no float8 kernel here."""
    value = value_of(node)
    device = value.device if isinstance(value, Tensor) else torch.device("cpu")
    lacking = lacks_float8(device)
    if lacking is not None:
        return lacking
    readers = float8_readers(node)
    if not readers:
        return f"nothing reads the codes of {node.name}"
    found = (_product(reader) for reader in readers)
    return next((reason for reason in found if isinstance(reason, str)), None)


def float8_readers(node: Node) -> list[Node]:
    """Returns what computes with the values that float8 codes stand for."""
    found: list[Node] = []
    for user in node.users:
        if operation(user) in VIEWS or widened_float8(user) is not None:
            found += float8_readers(user)
        else:
            found.append(user)
    return found


def is_float8_work(node: Node) -> bool:
    """Tells whether ``node`` is a product of float8 codes, or stands between them and it."""
    if widened_float8(node) is None:
        return _is_float8_product(node)
    return any(_is_float8_product(reader) for reader in float8_readers(node))


def put_float8_layers(graph_module: GraphModule, device: torch.device) -> int:
    """Replaces each linear layer on float8 codes by a ``Float8Linear``; returns how many.

    Raises:
        BuildError: Values rounded to float8 would be computed with in a wider type.
    """
    rounded = [node for node in graph_module.graph.nodes if _is_widened_activation(node)]
    if not rounded:
        return 0
    lacking = lacks_float8(device)
    if lacking is not None:
        raise BuildError(lacking)
    readers = dict.fromkeys(reader for node in rounded for reader in float8_readers(node))
    for reader in readers:
        found = _product(reader)
        if isinstance(found, str):
            raise BuildError(f"{reader.name} would run in a wider type: {found}")
        _replace(graph_module, found)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return len(readers)


def _is_widened_activation(node: Node) -> bool:
    codes = node.all_input_nodes[0] if node.all_input_nodes else node
    return widened_float8(node) is codes and codes.op != "get_attr" and is_float8(codes)


def _is_float8_product(node: Node) -> bool:
    found = _behind_scale(node.args[0]) if operation(node) == "linear" else None
    return found is not None and found[0].op != "get_attr"


def _product(node: Node) -> _Product | str:
    """Returns the parts of a product, or why float8 kernels do not take it."""
    if operation(node) != "linear":
        return f"torch's float8 kernel is for linear layers, this is {operation(node) or node.op}"
    codes, scale, views = _behind_scale(node.args[0]) or (None, None, ())
    weight = _behind_scale(node.args[1])
    if codes is None or not isinstance(scale, float):
        return "the float8 kernel takes activations with one scale, as a literal"
    if weight is None or weight[0].op != "get_attr" or weight[2]:
        return "the float8 kernel takes constant weights in float8"
    scales = _attribute_read(weight[1])
    if scales is None:
        return "the float8 kernel takes weights with one scale per output channel"
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, Node) and bias.op != "get_attr":
        return "the float8 kernel takes a constant bias"
    found = _Product(
        node, codes, views, scale, weight[0], scales, bias if isinstance(bias, Node) else None
    )
    return _unfit_sizes(found) or found


def _behind_scale(value: object) -> tuple[Node, object, tuple[Node, ...]] | None:
    """Returns the float8 codes that ``value`` stands for, their scale, and the views between."""
    views: list[Node] = []
    scale: object = None
    while isinstance(value, Node):
        if is_float8(value) and operation(value) not in VIEWS:
            return value, scale, tuple(reversed(views))
        if operation(value) == "mul" and scale is None:
            scale = value.args[1]
        elif operation(value) in VIEWS:
            views.append(value)
        elif widened_float8(value) is None:
            return None
        value = value.args[0]
    return None


def _attribute_read(scales: object) -> Node | None:
    """Returns the attribute behind scales that were reshaped to a column."""
    if not isinstance(scales, Node):
        return None
    if operation(scales) in ("reshape", "view") and scales.args[1] == [-1, 1]:
        read = scales.args[0]
        return read if isinstance(read, Node) and read.op == "get_attr" else None
    return None


def _unfit_sizes(product: _Product) -> str | None:
    owner = product.node.graph.owning_module
    assert owner is not None, "the graph of a module has one"
    weight = attribute(owner, str(product.weight.target))
    if any(size % _CUBLAS_STEP for size in weight.shape):
        return (
            f"cuBLAS multiplies float8 whose sizes are multiples of {_CUBLAS_STEP}, the weight "
            f"{product.weight.target} is {list(weight.shape)}"
        )
    kinds = (weight.dtype, dtype_of(product.codes))
    if kinds == (torch.float8_e5m2, torch.float8_e5m2):
        return "cuBLAS does not multiply float8_e5m2 by float8_e5m2"
    return None


def _replace(graph_module: GraphModule, product: _Product) -> None:
    node, bias = product.node, product.bias
    layer = Float8Linear(
        attribute(graph_module, str(product.weight.target)),
        attribute(graph_module, str(product.scales.target)),
        None if bias is None else attribute(graph_module, str(bias.target)),
        product.scale,
        dtype_of(node) or torch.float32,
    )
    name = f"_float8_of_{node.name}"
    graph_module.add_submodule(name, layer)
    graph, codes = graph_module.graph, product.codes
    with graph.inserting_before(node):
        for view in product.views:
            copied = graph.node_copy(view)
            copied.replace_input_with(view.all_input_nodes[0], codes)
            copied.meta.pop("val", None)
            codes = copied
        call = graph.call_module(name, (codes,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph.erase_node(node)
