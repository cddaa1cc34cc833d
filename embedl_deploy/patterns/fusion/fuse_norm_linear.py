"""Fuses a layer norm with the one linear layer that reads it."""

from torch import nn
from torch.fx import Node

from embedl_deploy.modules import FusedNormLinear
from embedl_deploy.modules.kinds import ACTIVATIONS, LINEARS, ROW_NORMS
from embedl_deploy.patterns.fusion.parts import activation_of, linear_of
from embedl_deploy.rewriting import Chain, Maybe, Pattern, PatternMatch, Phase, Refusal


class FuseNormLinear(Pattern):
    """Replaces ``activation(linear(norm(x)))`` with one ``FusedNormLinear``; activation optional.

    For targets that normalise rows while they load them for the product. Exact.
    """

    phase = Phase.FUSION
    tree = Chain(norm=ROW_NORMS, linear=LINEARS, activation=Maybe(ACTIVATIONS))

    def check(self, match: PatternMatch) -> Refusal | None:
        shape = match.module("norm", nn.Module).normalized_shape
        if isinstance(shape, tuple) and len(shape) != 1:
            return Refusal(f"the norm spans {len(shape)} dimensions, not one row", match["norm"])
        return None

    def replace(self, match: PatternMatch) -> Node:
        norm = match.module("norm", nn.Module)
        assert isinstance(norm, ROW_NORMS)
        fused = FusedNormLinear(norm, linear_of(match), activation_of(match))
        return match.call_module(fused, match["norm"].args[0])
