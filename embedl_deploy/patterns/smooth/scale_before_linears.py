"""Scales a tensor between its producer, which cannot be scaled, and linear layers."""

from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.kinds import ACTIVATIONS, ROW_NORMS
from embedl_deploy.patterns.smooth.move_outliers_into_linears import objection_to_folding
from embedl_deploy.patterns.smooth.readers import feeds_layers, shared_layer
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, Refusal


def _cannot_fold(node: Node) -> bool:
    return feeds_layers(node) and objection_to_folding(node) is not None


def _ends_in_activation(node: Node) -> bool:
    module = module_of(node)
    return isinstance(module, FusedLinear) and module.activation is not None and feeds_layers(node)


class ScaleBeforeLinears(Pattern):
    """Inserts a multiplication by 1 / s before linear layers and multiplies their weights by s.

        y = (x · 1/s) (W · s)ᵀ                              per channel of x

    For what ``MoveOutliersIntoLinears`` cannot fold: the output of a norm that a residual add
    reads too, and of an activation. Exact in real arithmetic. The multiplication costs one
    pointwise operation, which compilers merge into the kernel of the producer or the quantizer.

    Source: Xiao et al. 2023, SmoothQuant, https://arxiv.org/abs/2211.10438
    """

    phase = Phase.SMOOTH
    tree = Chain(
        value=(
            *(Op(norm, where=_cannot_fold) for norm in ROW_NORMS),
            *(Op(activation, where=feeds_layers) for activation in ACTIVATIONS),
            Op(FusedLinear, where=_ends_in_activation),
        )
    )

    def check(self, match: PatternMatch) -> Refusal | None:
        return shared_layer(match["value"])

    def replace(self, match: PatternMatch) -> Node:
        return match.root
