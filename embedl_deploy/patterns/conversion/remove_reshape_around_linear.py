"""Removes the flattening of rows before a linear layer and its undoing after."""

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import is_call, shape_of
from embedl_deploy.modules.kinds import LINEARS
from embedl_deploy.patterns.shapes import same_shape
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, Refusal

_ATEN = torch.ops.aten
_RESHAPES = (_ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints)


def _undoes_the_flattening(node: Node) -> bool:
    linear = node.all_input_nodes[0]
    before = linear.all_input_nodes[0] if linear.all_input_nodes else None
    if before is None or not any(is_call(before, target) for target in _RESHAPES):
        return False
    rows, flat = shape_of(before.all_input_nodes[0]), shape_of(before)
    after = shape_of(node)
    if not rows or not flat or not after:
        return False
    return same_shape(rows[:-1], after[:-1]) and same_shape(rows[-1:], flat[-1:])


class RemoveReshapeAroundLinear(Pattern):
    """Replaces ``linear(x.view(-1, in)).view(..., out)`` with ``linear(x)``.

    A linear layer takes any number of leading dimensions; GPT-2 and others flatten them by hand.
    Outputs move by rounding only: the product may be summed in another order.
    """

    phase = Phase.CONVERSION
    tree = Chain(
        before=_RESHAPES,
        linear=LINEARS,
        after=(
            Op(_ATEN.view.default, where=_undoes_the_flattening),
            Op(_ATEN.reshape.default, where=_undoes_the_flattening),
            Op(_ATEN.unflatten.int, where=_undoes_the_flattening),
        ),
    )

    def decline(self, match: PatternMatch) -> Refusal | None:
        # The flattened rows may be read by other layers too: for them they stay.
        linear = match["linear"]
        if len(linear.users) > 1:
            return Refusal(f"%{linear.name} is also used before its rows are regrouped", linear)
        return None

    def replace(self, match: PatternMatch) -> dict[Node, Node]:
        before = match["before"]
        linear = match.module("linear", torch.nn.Module)
        return {
            match.root: match.call_module(linear, before.all_input_nodes[0]),
            before: before,
        }
