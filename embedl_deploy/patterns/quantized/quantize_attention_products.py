"""Quantizes the operands of the two products of attention."""

from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.rewriting import Chain, Pattern, Phase


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
