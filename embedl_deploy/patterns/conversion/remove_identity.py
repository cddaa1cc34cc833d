"""Removes modules that return their input."""

from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.kinds import DROPOUTS
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase


def _never_drops(node: Node) -> bool:
    module = module_of(node)
    return isinstance(module, DROPOUTS) and module.p == 0.0


class RemoveIdentity(Pattern):
    """Removes ``nn.Identity``, and dropout whose probability is zero. Exact."""

    phase = Phase.CONVERSION
    tree = Chain(identity=(nn.Identity, *(Op(kind, where=_never_drops) for kind in DROPOUTS)))

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]
