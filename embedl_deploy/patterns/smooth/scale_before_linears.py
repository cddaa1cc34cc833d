"""Scales a tensor between its producer, which cannot be scaled, and linear layers."""

from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.kinds import ACTIVATIONS, ROW_NORMS
from embedl_deploy.patterns.smooth.move_outliers_into_linears import MoveOutliersIntoLinears
from embedl_deploy.patterns.smooth.readers import linear_readers, shared_layer
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, Refusal


def _has_activation(node: Node) -> bool:
    module = module_of(node)
    return isinstance(module, FusedLinear) and module.activation is not None


class ScaleBeforeLinears(Pattern):
    """Inserts a multiplication by 1 / s before linear layers and multiplies their weights by s.

        y = (x · 1/s) (W · s)ᵀ                              per channel of x

    For what ``MoveOutliersIntoLinears`` cannot fold: the output of a norm that a residual add
    reads too, and of an activation. Exact in real arithmetic. The multiplication costs one
    pointwise operation, which compilers merge into the kernel of the producer or the quantizer.

    Source: Xiao et al. 2023, SmoothQuant, https://arxiv.org/abs/2211.10438
    """

    phase = Phase.SMOOTH
    tree = Chain(value=(*ROW_NORMS, *ACTIVATIONS, Op(FusedLinear, where=_has_activation)))

    def check(self, match: PatternMatch) -> Refusal | None:
        node = match["value"]
        if not linear_readers(node):
            return Refusal("no linear layer reads it", node)
        if isinstance(module_of(node), ROW_NORMS) and _folds(match):
            return Refusal("the norm takes the factors without a multiplication", node)
        return shared_layer(node)

    def replace(self, match: PatternMatch) -> Node:
        return match.root


def _folds(match: PatternMatch) -> bool:
    return MoveOutliersIntoLinears().check(match) is None
