"""Fuses a convolution with the batch norm and activation after it."""

from torch.fx import Node

from embedl_deploy.modules import fused_conv
from embedl_deploy.modules.kinds import ACTIVATIONS, BATCH_NORMS, CONVOLUTIONS
from embedl_deploy.patterns.fusion.conditions import objection_to_conv, objection_to_norm
from embedl_deploy.patterns.fusion.parts import activation_of, convolution_of, norm_of
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal


class FuseConvNormActivation(Pattern):
    """Replaces ``activation(norm(conv(x)))`` with one ``FusedConvBNReLU`` or ``FusedConvBNAct``.

    Exact: the fused module runs the same parts until its weight is quantized.
    """

    phase = Phase.FUSION
    tree = Chain(conv=CONVOLUTIONS, norm=BATCH_NORMS, activation=ACTIVATIONS)

    def check(self, match: PatternMatch) -> Refusal | None:
        return objection_to_conv(match) or objection_to_norm(match)

    def replace(self, match: PatternMatch) -> Node:
        fused = fused_conv(convolution_of(match), norm_of(match), activation_of(match))
        return match.call_module(fused, match["conv"].args[0])
