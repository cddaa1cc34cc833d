"""Quantizes the input and the weight of convolutions."""

from torch.fx import Node

from embedl_deploy.modules.fused_conv import FusedConv
from embedl_deploy.modules.kinds import CONVOLUTIONS
from embedl_deploy.modules.linear_as_conv1x1 import LinearAsConv1x1
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase


class QuantizeConv(Pattern):
    """Places a quantizer on the input of a convolution, bare or fused, and on its weight.

    The second input of a fused residual add is no operand of the convolution; see
    ``QuantizeResidual``.
    """

    phase = Phase.QUANTIZATION
    tree = Chain(layer=(FusedConv, LinearAsConv1x1, *CONVOLUTIONS))
    qdq_points = ("layer[0]", "layer.weight")

    def replace(self, match: PatternMatch) -> Node:
        return match.root  # the stage places the quantizers
