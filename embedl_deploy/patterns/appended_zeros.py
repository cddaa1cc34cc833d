"""Finds keys and values that end in a row of zeros, as ``add_zero_attn`` makes them."""

import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import graph_module_of, is_call
from embedl_deploy.patterns.literals import number_of
from embedl_deploy.rewriting import Refusal

_ATEN = torch.ops.aten
_RELAYS = (
    _ATEN.view,
    _ATEN.reshape,
    _ATEN.transpose,
    _ATEN.permute,
    _ATEN.contiguous,
    _ATEN.clone,
    _ATEN.mul,
    _ATEN.unsqueeze,
    _ATEN.squeeze,
)
_ZEROS = (_ATEN.zeros, _ATEN.zeros_like, _ATEN.new_zeros)
_MOST_STEPS = 8


def objection_to_appended_zeros(key: Node, value: Node) -> Refusal | None:
    """Returns why an attention over ``key`` and ``value`` is left alone, None if it need not be.

    A row of zeros lets a query attend to nothing. Kernels have no such row: an attention over
    keys one longer than the projection's output fits no tile and is best left to the user.
    """
    if _ends_in_zeros(key) and _ends_in_zeros(value):
        return Refusal(
            "its keys and values end in a row of zeros (add_zero_attn=True), which attention "
            "kernels do not take",
            key,
        )
    return None


def _ends_in_zeros(node: Node) -> bool:
    for _ in range(_MOST_STEPS):
        if is_call(node, _ATEN.cat.default):
            last = node.all_input_nodes[-1]
            return len(node.all_input_nodes) > 1 and _is_zeros(last)
        if not any(is_call(node, target) for target in _RELAYS) or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return False


def _is_zeros(node: Node) -> bool:
    if any(is_call(node, target) for target in _ZEROS):
        return True
    if is_call(node, _ATEN.full.default):
        return not isinstance(node.args[1], Node) and number_of(node.args[1]) == 0.0
    if node.op != "get_attr":
        return False
    value = attribute_of(graph_module_of(node), str(node.target))
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
        return False
    return not bool(value.any())
