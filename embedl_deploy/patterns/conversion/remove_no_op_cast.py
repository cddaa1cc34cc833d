"""Removes casts to the dtype, device and layout that a tensor already has."""

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments, value_of
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase

_ATEN = torch.ops.aten


def _changes_nothing(node: Node) -> bool:
    bound, source = bound_arguments(node), node.all_input_nodes[0]
    before, after = value_of(source), value_of(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    if bound.get("memory_format") not in (None, torch.preserve_format):
        return False
    return (before.dtype, before.device, before.layout) == (after.dtype, after.device, after.layout)


class RemoveNoOpCast(Pattern):
    """Removes ``x.to(dtype)`` where x has that dtype, device and layout already. Exact."""

    phase = Phase.CONVERSION
    tree = Chain(
        cast=(
            Op(_ATEN.to, where=_changes_nothing),
            Op(_ATEN._to_copy, where=_changes_nothing),
            Op(_ATEN.type_as, where=_changes_nothing),
        )
    )

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]
