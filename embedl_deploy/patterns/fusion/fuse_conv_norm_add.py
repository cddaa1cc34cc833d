"""Fuses a convolution with the batch norm and residual add after it."""

import torch
from torch.fx import Node

from embedl_deploy.modules import fused_conv
from embedl_deploy.modules.kinds import BATCH_NORMS, CONVOLUTIONS
from embedl_deploy.patterns.fusion.conditions import (
    objection_to_add,
    objection_to_conv,
    objection_to_norm,
)
from embedl_deploy.patterns.fusion.parts import convolution_of, norm_of
from embedl_deploy.rewriting import Chain, Fork, Input, Pattern, PatternMatch, Phase, Refusal


class FuseConvNormAdd(Pattern):
    """Replaces ``norm(conv(x)) + residual``, in either order, with one ``FusedConvBNAdd``.

    Exact: the fused module runs the same parts until its weight is quantized.
    """

    phase = Phase.FUSION
    tree = Chain(
        conv=CONVOLUTIONS,
        norm=BATCH_NORMS,
        add=Fork(torch.ops.aten.add.Tensor, residual=Input()),
    )

    def check(self, match: PatternMatch) -> Refusal | None:
        return objection_to_conv(match) or objection_to_norm(match) or objection_to_add(match)

    def replace(self, match: PatternMatch) -> Node:
        fused = fused_conv(convolution_of(match), norm_of(match), adds_residual=True)
        return match.call_module(fused, match["conv"].args[0], match["residual"])
