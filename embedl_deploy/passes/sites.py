"""Reads the sites of a graph: what multiplies, its shapes, and how its operands arrive."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import input_nodes, module_of, shape_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_conv import FusedConv
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import (
    CONVOLUTIONS,
    LINEARS,
    TRANSPOSED_CONVOLUTIONS,
    Convolution,
)
from embedl_deploy.passes.carried_values import carries_values, op_name
from embedl_deploy.quantization.site import Addend, Reads, Site
from embedl_deploy.quantization.stub import QuantStub

_PRODUCTS = ("matmul", "bmm", "mm")
_FLOAT_KERNELS = (*_PRODUCTS, "scaled_dot_product_attention", "addmm", "baddbmm")


def sites_of(graph_module: GraphModule) -> dict[Node, tuple[Site, ...]]:
    """Returns the sites of every node that has some, in graph order.

    Layers have one, attention has its two products. The graph is one that ``quantize`` or
    ``insert_qdq`` returned, or one before quantization, where every layer counts as if it were
    to be quantized. Dynamic sizes count with the value they had at tracing; a node without
    recorded shapes is left out.
    """
    converted: set[Node] = set()
    found: dict[Node, tuple[Site, ...]] = {}
    for node in graph_module.graph.nodes:
        sites = tuple(_sites_at(node, converted))
        if sites:
            found[node] = sites
    return found


def _sites_at(node: Node, converted: set[Node]) -> Iterator[Site]:
    module = module_of(node)
    core = module.attention if isinstance(module, FusedAttention) else module
    is_op = op_name(node) == "scaled_dot_product_attention"
    if is_op or isinstance(core, ScaledDotProductAttention):
        yield from _attention(node)
    elif op_name(node) in _PRODUCTS:
        yield from _product(node)
    elif isinstance(module, (WeightedFused, *CONVOLUTIONS, *LINEARS)):
        yield from _layer(node, module, converted)


def _layer(node: Node, module: nn.Module, converted: set[Node]) -> Iterator[Site]:
    owner = module.weighted if isinstance(module, WeightedFused) else module
    source = node.all_input_nodes[0]
    shape, result = _sizes(source), _sizes(node)
    if shape is None or result is None:
        return
    weight = tuple(int(size) for size in cast("Tensor", owner.weight).shape)
    activation = getattr(module, "activation", None)
    site = Site(
        "linear",
        shape,
        weight[::-1] if isinstance(owner, TransposedLinear) else weight,
        result,
        activation="" if activation is None else type(activation).__name__,
        residual=_residual(node, module),
        has_bias=any(
            getattr(*slot, None) is not None for slot in ((owner, "bias"), (module, "norm"))
        ),
        reads="float32" if isinstance(module, FusedNormLinear) else _arrival(source, converted),
        writes_codes=_writes_codes_only(node),
    )
    if isinstance(owner, LINEARS):
        yield site
    elif isinstance(owner, CONVOLUTIONS) and len(shape) == len(weight):
        yield _convolution(site, owner)


def _convolution(site: Site, owner: Convolution) -> Site:
    padding = owner.padding
    if isinstance(padding, str):
        spans = zip(owner.dilation, owner.kernel_size, strict=True)
        padding = [step * (size - 1) // 2 if padding == "same" else 0 for step, size in spans]
    return replace(
        site,
        kind="transposed conv" if isinstance(owner, TRANSPOSED_CONVOLUTIONS) else "conv",
        stride=tuple(owner.stride),
        padding=tuple(padding),
        dilation=tuple(owner.dilation),
        groups=owner.groups,
    )


def _attention(node: Node) -> Iterator[Site]:
    # One tensor may be all three: the arguments repeat it, the list of inputs does not.
    query, key, value = (_sizes(operand) for operand in list(input_nodes(node.args))[:3])
    if query is None or key is None or value is None:
        return
    scores = (*query[:-1], key[-2])
    yield Site("matmul", query, (*key[:-2], key[-1], key[-2]), scores, reads="bfloat16")
    yield Site("matmul", scores, value, (*query[:-1], value[-1]), reads="bfloat16")


def _product(node: Node) -> Iterator[Site]:
    shapes = [_sizes(operand) for operand in list(input_nodes(node.args))[:2]]
    left, right = shapes if len(shapes) == 2 else (None, None)
    result = _sizes(node)
    if left is not None and right is not None and result is not None:
        yield Site("matmul", left, right, result, reads="bfloat16")


def _arrival(source: Node, converted: set[Node]) -> Reads:
    """Tells how the input of a layer arrives; notes that it is converted from here on."""
    was_converted = source in converted
    converted.add(source)
    origin = source
    while _is_stub(origin) or carries_values(origin):
        origin = origin.all_input_nodes[0]
    module = module_of(origin)
    if was_converted:
        return "codes"
    if isinstance(module, (WeightedFused, *CONVOLUTIONS, *LINEARS)):
        return "codes" if _writes_codes_only(origin) else "bfloat16"
    if isinstance(module, (FusedAttention, ScaledDotProductAttention)):
        return "bfloat16"
    return "bfloat16" if op_name(origin) in _FLOAT_KERNELS else "float32"


def _writes_codes_only(node: Node) -> bool:
    return bool(node.users) and all(_is_stub(user) for user in node.users)


def _residual(node: Node, module: nn.Module) -> Addend:
    if not isinstance(module, FusedConv) or not module.adds_residual:
        return ""
    operands = [*input_nodes(node.args), *input_nodes(tuple(node.kwargs.values()))]
    return "codes" if _is_stub(operands[-1]) else "float"


def _is_stub(node: Node) -> bool:
    return isinstance(module_of(node), QuantStub)


def _sizes(node: Node) -> tuple[int, ...] | None:
    """Returns the shape of a node, symbolic sizes by the value they had at tracing."""
    shape = shape_of(node)
    if shape is None:
        return None
    sizes = tuple(size if isinstance(size, int) else _hint(size) for size in shape)
    return sizes if math.prod(sizes) > 0 else None


def _hint(size: torch.SymInt) -> int:
    hint = cast("int | None", size.node.hint)
    return 1 if hint is None else int(hint)
