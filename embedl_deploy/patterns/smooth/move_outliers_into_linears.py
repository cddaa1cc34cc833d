"""Moves the outliers of a norm's output into the layers that read it."""

from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.kinds import ROW_NORMS
from embedl_deploy.patterns.smooth.readers import feeds_layers, shared_layer, ways_to_layers
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, Refusal


class MoveOutliersIntoLinears(Pattern):
    """Divides each channel of a norm by a factor and multiplies the weights that read it.

        γ' = γ / s,   β' = β / s,   W' = W · s             per channel of the norm

    The layers are linear ones and convolutions without groups; what lies between moves values
    only, as in attention that puts the sequence first or networks that turn channels to the front.
    Exact in real arithmetic; outputs move by float32 rounding. The factors need data: the smooth
    stage of ``quantize`` finds them, this rule says where they may be applied.

    Source: Xiao et al. 2023, SmoothQuant, https://arxiv.org/abs/2211.10438
    """

    phase = Phase.SMOOTH
    tree = Chain(value=tuple(Op(norm, where=feeds_layers) for norm in ROW_NORMS))

    def check(self, match: PatternMatch) -> Refusal | None:
        return objection_to_folding(match["value"])

    def replace(self, match: PatternMatch) -> Node:
        return match.root


def objection_to_folding(node: Node) -> Refusal | None:
    """Returns why a norm cannot take factors itself, ``None`` if it can."""
    if getattr(module_of(node), "weight", None) is None:
        return Refusal("the norm has no gain to fold factors into", node)
    ways = ways_to_layers(node)
    for reader in node.users:
        if reader not in ways:
            return Refusal(
                f"%{reader.name} reads the norm too, and cannot undo the factors", reader
            )
    return shared_layer(node)
