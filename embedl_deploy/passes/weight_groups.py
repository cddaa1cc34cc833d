"""Which layers have weights that can be cut into groups."""

from typing import cast

from torch import Tensor
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.kinds import TRANSPOSED_CONVOLUTIONS


def no_groups(node: Node, size: int) -> str | None:
    """Returns why no groups of ``size`` fit the weight of the layer at ``node``, None if they do.

    A group is of weights that one output reads. The weight of a convolution is laid out as (out,
    in / groups · kernel) for it, the matrix that multiplies its patches.
    """
    module = module_of(node)
    layer = module.weighted if isinstance(module, WeightedFused) else module
    assert layer is not None, "a node with a weight runs a module"
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        return f"{type(layer).__name__} has no groups: its outputs share their weights' rows"
    weight = cast("Tensor", layer.weight)
    outputs = weight.shape[1 if isinstance(layer, TransposedLinear) else 0]
    row = weight.numel() // outputs
    if row % size == 0:
        return None
    return (
        f"each output has {row} weights, which group_size={size} does not divide: choose a size "
        "that does, or one scale per channel"
    )
