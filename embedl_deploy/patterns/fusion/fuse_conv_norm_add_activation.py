"""Fuses a convolution with the batch norm, residual add and activation after it."""

import torch
from torch.fx import Node

from embedl_deploy.modules import fused_conv
from embedl_deploy.modules.kinds import ACTIVATIONS, BATCH_NORMS, CONVOLUTIONS
from embedl_deploy.patterns.fusion.conditions import (
    objection_to_add,
    objection_to_conv,
    objection_to_norm,
)
from embedl_deploy.patterns.fusion.parts import activation_of, convolution_of, norm_of
from embedl_deploy.rewriting import Chain, Fork, Input, Pattern, PatternMatch, Phase, Refusal


class FuseConvNormAddActivation(Pattern):
    """Replaces ``activation(norm(conv(x)) + residual)`` with one ``FusedConvBNAddReLU`` or so.

    The operands of the add may come in either order. Exact: the fused module runs the same
    parts until its weight is quantized.
    """

    phase = Phase.FUSION
    tree = Chain(
        conv=CONVOLUTIONS,
        norm=BATCH_NORMS,
        add=Fork(torch.ops.aten.add.Tensor, residual=Input()),
        activation=ACTIVATIONS,
    )

    def check(self, match: PatternMatch) -> Refusal | None:
        return objection_to_conv(match) or objection_to_norm(match) or objection_to_add(match)

    def replace(self, match: PatternMatch) -> Node:
        fused = fused_conv(
            convolution_of(match), norm_of(match), activation_of(match), adds_residual=True
        )
        return match.call_module(fused, match["conv"].args[0], match["residual"])
