# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Removes from a flat graph what computes nothing that anyone reads."""

import math
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

_aten = torch.ops.aten
ASSERTS = (
    _aten._assert_async.msg,
    _aten._assert_async.default,
    _aten._assert_scalar.default,
    _aten._assert_tensor_metadata.default,
    _aten.sym_constrain_range.default,
    _aten.sym_constrain_range_for_size.default,
)
VIEWS = (_aten.view.default, _aten._unsafe_view.default)
"""What traced graphs spell as ``reshape``."""

_SIZED_LIKE = {
    _aten.expand_as.default: _aten.expand.default,
    _aten.view_as.default: _aten.reshape.default,
    _aten.reshape_as.default: _aten.reshape.default,
}
_UNBACKED = (_aten.item.default, _aten._local_scalar_dense.default, _aten.nonzero.default)


def remove_asserts(graph: Graph) -> None:
    """Removes assertions, but not those that bound sizes read from data: exporting needs them."""
    has_unbacked = any(
        graph.find_nodes(op="call_function", target=target, sort=False) for target in _UNBACKED
    )
    for target in ASSERTS:
        bounds_sizes = target in ASSERTS[2:3] + ASSERTS[4:]
        if has_unbacked and bounds_sizes:
            continue
        for node in graph.find_nodes(op="call_function", target=target):
            graph.erase_node(node)


def remove_true_asserts(graph: Graph) -> None:
    """Removes assertions whose condition is the literal true."""
    for node in graph.find_nodes(op="call_function", target=_aten._assert_scalar.default):
        if node.args[0] is True:
            graph.erase_node(node)


def saturate_fills(graph: Graph) -> None:
    """Replaces the number of a ``full`` by the largest that its dtype holds, where it is beyond.

    A mask made with ``torch.finfo(torch.float64).min`` is float32 unless told otherwise: recorded
    without complaint, it fails when it runs.
    """
    for target in (_aten.full.default, _aten.full_like.default, _aten.new_full.default):
        for node in graph.find_nodes(op="call_function", target=target):
            position = 2 if target is _aten.new_full.default else 1
            number, made = node.args[position], node.meta.get("val")
            if not isinstance(number, float) or not isinstance(made, Tensor):
                continue
            if made.dtype.is_floating_point and math.isfinite(number):
                limits = torch.finfo(made.dtype)
                node.update_arg(position, min(max(number, limits.min), limits.max))


def views_as_reshapes(graph: Graph) -> None:
    """Spells every ``view`` as ``reshape``: it holds whatever layout the kernel before it chose."""
    for target in VIEWS:
        for node in graph.find_nodes(op="call_function", target=target):
            node.target = _aten.reshape.default


def name_sizes(graph: Graph) -> None:
    """Puts known sizes in place of tensors that are read for their sizes only."""
    for target, named in _SIZED_LIKE.items():
        for node in graph.find_nodes(op="call_function", target=target):
            made = node.meta.get("val")
            if not isinstance(made, Tensor):
                continue
            sizes = cast("list[object]", list(made.shape))
            if all(isinstance(size, int) for size in sizes):
                node.target = named
                node.args = (node.args[0], cast("list[int]", sizes))


def remove_dead_code(graph: Graph) -> None:
    """Removes every node that nothing reads and that has no effect, in one sweep."""
    for node in reversed(list(graph.nodes)):
        if not node.users and _is_free_of_effects(node):
            graph.erase_node(node)


def _is_free_of_effects(node: Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function":
        return False
    if isinstance(node.target, OpOverload):
        return not node.target._schema.is_mutable and node.target not in ASSERTS
    return getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
