"""Moves the outliers of a norm's output into the linear layers that read it."""

from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import LINEARS, ROW_NORMS, LinearLayer
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal


class MoveOutliersIntoLinears(Pattern):
    """Divides each channel of a norm by a factor and multiplies the weights that read it.

        γ' = γ / s,   β' = β / s,   W' = W · s             per channel of the norm

    Exact in real arithmetic; outputs move by float32 rounding. The factors need data: the smooth
    stage of ``quantize`` finds them, this rule says where they may be applied.

    Source: Xiao et al. 2023, SmoothQuant, https://arxiv.org/abs/2211.10438
    """

    phase = Phase.SMOOTH
    tree = Chain(norm=ROW_NORMS)

    def check(self, match: PatternMatch) -> Refusal | None:
        node = match["norm"]
        norm = module_of(node)
        if norm is None or getattr(norm, "weight", None) is None:
            return Refusal("the norm has no gain to fold factors into", node)
        for reader in node.users:
            if linear_that_reads(reader, node) is None:
                return Refusal(
                    f"%{reader.name} reads the norm too, and cannot undo the factors", reader
                )
        if _calls(node) > 1:
            return Refusal("the norm is called more than once", node)
        shared = next((reader for reader in node.users if _calls(reader) > 1), None)
        if shared is not None:
            return Refusal(f"%{shared.name} runs a layer that is called more than once", shared)
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match.root


def linear_that_reads(reader: Node, value: Node) -> LinearLayer | None:
    """Returns the linear layer that ``reader`` runs on ``value``, ``None`` if it runs none."""
    module = module_of(reader)
    if reader.args[:1] != (value,) or isinstance(module, FusedNormLinear):
        return None
    if isinstance(module, FusedLinear):
        return module.linear
    return module if isinstance(module, LINEARS) else None


def _calls(node: Node) -> int:
    """Returns how many nodes run the layer that ``node`` runs, fused or bare."""
    module = module_of(node)
    layer: nn.Module | None = module.linear if isinstance(module, FusedLinear) else module
    return sum(
        other is layer or (isinstance(other, FusedLinear) and other.linear is layer)
        for other in (module_of(candidate) for candidate in node.graph.nodes)
    )
