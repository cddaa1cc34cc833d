"""Fuses a convolution with the activation after it."""

from torch.fx import Node

from embedl_deploy.modules import fused_conv
from embedl_deploy.modules.kinds import ACTIVATIONS, CONVOLUTIONS
from embedl_deploy.patterns.fusion.conditions import objection_to_conv
from embedl_deploy.patterns.fusion.parts import activation_of, convolution_of
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal


class FuseConvActivation(Pattern):
    """Replaces ``activation(conv(x))`` with one ``FusedConvReLU`` or ``FusedConvAct``.

    Exact: the fused module runs the same parts until its weight is quantized.
    """

    phase = Phase.FUSION
    tree = Chain(conv=CONVOLUTIONS, activation=ACTIVATIONS)

    def check(self, match: PatternMatch) -> Refusal | None:
        return objection_to_conv(match)

    def replace(self, match: PatternMatch) -> Node:
        fused = fused_conv(convolution_of(match), activation=activation_of(match))
        return match.call_module(fused, match["conv"].args[0])
