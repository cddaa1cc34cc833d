"""Removes arithmetic with its neutral element."""

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments, dtype_of
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase

_ATEN = torch.ops.aten


def _is_neutral(node: Node) -> bool:
    other = bound_arguments(node)["other"]
    if isinstance(other, bool) or not isinstance(other, (int, float)):
        return False
    if dtype_of(node) is None or dtype_of(node) != dtype_of(node.all_input_nodes[0]):
        return False
    neutral = 0 if node.target in (_ATEN.add.Tensor, _ATEN.sub.Tensor) else 1
    return other == neutral and "rounding_mode" not in node.kwargs


class RemoveNoOpArithmetic(Pattern):
    """Removes ``x + 0``, ``x - 0``, ``x * 1`` and ``x / 1`` where the dtype stays. Exact."""

    phase = Phase.CONVERSION
    tree = Chain(
        arithmetic=(
            Op(_ATEN.add.Tensor, where=_is_neutral),
            Op(_ATEN.sub.Tensor, where=_is_neutral),
            Op(_ATEN.mul.Tensor, where=_is_neutral),
            Op(_ATEN.div.Tensor, where=_is_neutral),
        )
    )

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]
