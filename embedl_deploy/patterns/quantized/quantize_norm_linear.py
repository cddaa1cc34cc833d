"""Quantizes the normalised rows and the weight of linear layers fused with a norm."""

from torch.fx import Node

from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase


class QuantizeNormLinear(Pattern):
    """Places a quantizer between a norm and its linear layer, and one on the weight."""

    phase = Phase.QUANTIZATION
    tree = Chain(layer=FusedNormLinear)
    qdq_points = ("layer.linear_input_stub", "layer.weight")

    def replace(self, match: PatternMatch) -> Node:
        return match.root  # the stage places the quantizers
