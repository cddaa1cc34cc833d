# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Removes from a flat graph what computes nothing that anyone reads."""

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node

_aten = torch.ops.aten
_ASSERTS = (
    _aten._assert_async.msg,
    _aten._assert_async.default,
    _aten._assert_scalar.default,
    _aten._assert_tensor_metadata.default,
    _aten.sym_constrain_range.default,
    _aten.sym_constrain_range_for_size.default,
)
_UNBACKED = (_aten.item.default, _aten._local_scalar_dense.default, _aten.nonzero.default)


def remove_asserts(graph: Graph) -> None:
    """Removes assertions, but not those that bound sizes read from data: exporting needs them."""
    has_unbacked = any(
        graph.find_nodes(op="call_function", target=target, sort=False) for target in _UNBACKED
    )
    for target in _ASSERTS:
        bounds_sizes = target in _ASSERTS[2:3] + _ASSERTS[4:]
        if has_unbacked and bounds_sizes:
            continue
        for node in graph.find_nodes(op="call_function", target=target):
            graph.erase_node(node)


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
        return not node.target._schema.is_mutable and node.target not in _ASSERTS
    return getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
