"""Fuses the visible products of an attention into one kernel."""

from torch.fx import Node

from embedl_deploy.modules import FusedAttention, ScaledDotProductAttention
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase


class FuseAttention(Pattern):
    """Replaces ``ScaledDotProductAttention`` with one ``FusedAttention`` around it.

    Outputs move by rounding only: the kernel sums in another order.
    """

    phase = Phase.FUSION
    tree = Chain(attention=ScaledDotProductAttention)

    def replace(self, match: PatternMatch) -> Node:
        core = match.module("attention", ScaledDotProductAttention)
        return match.call_module(FusedAttention(core), *match.root.args)
