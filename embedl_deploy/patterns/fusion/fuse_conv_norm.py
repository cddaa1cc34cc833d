"""Fuses a convolution with the batch norm after it."""

from torch.fx import Node

from embedl_deploy.modules import fused_conv
from embedl_deploy.modules.kinds import BATCH_NORMS, CONVOLUTIONS
from embedl_deploy.patterns.fusion.conditions import objection_to_conv, objection_to_norm
from embedl_deploy.patterns.fusion.parts import convolution_of, norm_of
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal


class FuseConvNorm(Pattern):
    """Replaces ``norm(conv(x))`` with one ``FusedConvBN``.

    Exact: the fused module runs the same parts until its weight is quantized.
    """

    phase = Phase.FUSION
    tree = Chain(conv=CONVOLUTIONS, norm=BATCH_NORMS)

    def check(self, match: PatternMatch) -> Refusal | None:
        return objection_to_conv(match) or objection_to_norm(match)

    def replace(self, match: PatternMatch) -> Node:
        fused = fused_conv(convolution_of(match), norm_of(match))
        return match.call_module(fused, match["conv"].args[0])
