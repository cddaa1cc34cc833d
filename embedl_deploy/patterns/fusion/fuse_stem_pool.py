"""Fuses the stem of a convolutional net with the max pooling after it."""

from torch import nn
from torch.fx import Node

from embedl_deploy.modules import FusedStemPool
from embedl_deploy.modules.kinds import ACTIVATIONS, BATCH_NORMS, CONVOLUTIONS, MAX_POOLS
from embedl_deploy.patterns.fusion.conditions import objection_to_conv, objection_to_norm
from embedl_deploy.patterns.fusion.parts import activation_of, convolution_of, norm_of
from embedl_deploy.rewriting import Chain, Maybe, Pattern, PatternMatch, Phase, Refusal

_MOST_IMAGE_CHANNELS = 4


class FuseStemPool(Pattern):
    """Replaces ``pool(activation(norm(conv(image))))`` with one ``FusedStemPool``.

    Only for the first convolution, which reads an image of at most four channels: there the
    pooled output is a quarter of what would be written otherwise. Exact.
    """

    phase = Phase.FUSION
    tree = Chain(conv=CONVOLUTIONS, norm=BATCH_NORMS, activation=Maybe(ACTIVATIONS), pool=MAX_POOLS)

    def check(self, match: PatternMatch) -> Refusal | None:
        conv, pool = convolution_of(match), match.module("pool", nn.Module)
        if conv.in_channels > _MOST_IMAGE_CHANNELS:
            return Refusal(
                f"the convolution reads {conv.in_channels} channels, a stem reads an image of "
                f"at most {_MOST_IMAGE_CHANNELS}",
                match["conv"],
            )
        if getattr(pool, "return_indices", False):
            return Refusal("the pool returns indices too", match["pool"])
        return objection_to_conv(match) or objection_to_norm(match)

    def replace(self, match: PatternMatch) -> Node:
        pool = match.module("pool", nn.Module)
        fused = FusedStemPool(convolution_of(match), norm_of(match), activation_of(match), pool)
        return match.call_module(fused, match["conv"].args[0])
