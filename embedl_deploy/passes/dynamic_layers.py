"""Which layers can take activations whose scale is known at run time only."""

from collections.abc import Sequence

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import LINEARS
from embedl_deploy.passes.points import Point


def no_dynamic_scale(points: Sequence[Point]) -> str | None:
    """Returns why an operand needs a constant scale, None if none does.

    A linear layer never adds up values of different tokens; convolutions and the products of
    attention do, so that no scale per token can be taken out of their sums.
    """
    for point in points:
        module = module_of(point.node)
        if not isinstance(module, (*LINEARS, FusedLinear, FusedNormLinear)):
            kind = str(point.node.target) if module is None else type(module).__name__
            return f"scales at run time are for linear layers, this is {kind}"
    return None
