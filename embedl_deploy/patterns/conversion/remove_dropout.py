"""Removes dropout, which does nothing at inference."""

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments, module_of
from embedl_deploy.modules.kinds import DROPOUTS
from embedl_deploy.patterns.literals import number_of
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal

_ATEN = torch.ops.aten


class RemoveDropout(Pattern):
    """Removes dropout in eval mode. Exact.

    ``transform`` keeps dropout, so that its result can be trained; lowering runs this rule.
    """

    phase = Phase.CONVERSION
    tree = Chain(dropout=(*DROPOUTS, _ATEN.dropout, _ATEN.feature_dropout, _ATEN.alpha_dropout))

    def check(self, match: PatternMatch) -> Refusal | None:
        if _is_active(match.root):
            return Refusal("the dropout is in training mode; call model.eval() first", match.root)
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]


def _is_active(node: Node) -> bool:
    module = module_of(node)
    if module is not None:
        return module.training
    bound = bound_arguments(node)
    return number_of(bound["p"]) != 0.0 and bound["train"] is not False
