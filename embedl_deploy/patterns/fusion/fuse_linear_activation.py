"""Fuses a linear layer with the activation after it."""

from torch.fx import Node

from embedl_deploy.modules import fused_linear
from embedl_deploy.modules.kinds import ACTIVATIONS, LINEARS
from embedl_deploy.patterns.fusion.parts import activation_of, linear_of
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase


class FuseLinearActivation(Pattern):
    """Replaces ``activation(linear(x))`` with one ``FusedLinearReLU`` or ``FusedLinearAct``.

    Exact: the fused module runs the same parts until its weight is quantized.
    """

    phase = Phase.FUSION
    tree = Chain(linear=LINEARS, activation=ACTIVATIONS)

    def replace(self, match: PatternMatch) -> Node:
        fused = fused_linear(linear_of(match), activation_of(match))
        return match.call_module(fused, match["linear"].args[0])
