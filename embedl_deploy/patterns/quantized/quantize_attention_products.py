"""Quantizes the operands of the two products of attention."""

from torch.fx import Node

from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase


class QuantizeAttentionProducts(Pattern):
    """Places quantizers on q, k, v and on the probabilities, inside the attention module."""

    phase = Phase.QUANTIZATION
    tree = Chain(attention=(FusedAttention, ScaledDotProductAttention))
    qdq_points = (
        "attention.query_stub",
        "attention.key_stub",
        "attention.probabilities_stub",
        "attention.value_stub",
    )

    def replace(self, match: PatternMatch) -> Node:
        return match.root  # the stage places the quantizers
