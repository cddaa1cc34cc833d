"""Quantizes the residual that a fused convolution adds to its output."""

from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused_conv import FusedConv
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase


def _adds_residual(node: Node) -> bool:
    module = module_of(node)
    return isinstance(module, FusedConv) and module.adds_residual


class QuantizeResidual(Pattern):
    """Places a quantizer on the second operand of a residual add fused into a convolution.

    With it the kernel reads the skip connection in one byte per value instead of four.
    """

    phase = Phase.QUANTIZATION
    tree = Chain(layer=Op(FusedConv, where=_adds_residual))
    qdq_points = ("layer[1]",)

    def replace(self, match: PatternMatch) -> Node:
        return match.root  # the stage places the quantizers
