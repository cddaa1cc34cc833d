"""Quantizes the input and the weight of linear layers."""

from torch.fx import Node

from embedl_deploy.graph.nodes import is_call
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import LINEARS
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase


def _reads_its_input(node: Node) -> bool:
    return not is_call(node, FusedNormLinear)


class QuantizeLinear(Pattern):
    """Places a quantizer on the input of a linear layer, bare or fused, and on its weight.

    A linear layer fused with the norm before it reads the normalised rows instead; see
    ``QuantizeNormLinear``.
    """

    phase = Phase.QUANTIZATION
    tree = Chain(layer=(Op(FusedLinear, where=_reads_its_input), *LINEARS))
    qdq_points = ("layer[0]", "layer.weight")

    def replace(self, match: PatternMatch) -> Node:
        return match.root  # the stage places the quantizers
