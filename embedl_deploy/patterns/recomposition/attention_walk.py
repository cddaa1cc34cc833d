"""What is met on the way from an attention's last product back to its first."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import is_call, module_of, shape_of
from embedl_deploy.patterns.shapes import Size, same_shape

_ATEN = torch.ops.aten
PRODUCTS = (_ATEN.matmul.default, _ATEN.bmm.default)
RESHAPES = (_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default)
CASTS = (_ATEN.to.dtype, _ATEN._to_copy.default, _ATEN.to.dtype_layout, _ATEN.type_as.default)
MOST_STEPS = 12
"""How many nodes may stand between two products; far more than any model writes."""


@dataclass(frozen=True)
class Mask:
    """One mask of the scores."""

    node: Node
    """What is added, or a condition."""

    scores: Node
    """The node that applies it: the shape it is broadcast to."""

    factor: float = 1.0
    """What the masked scores are multiplied by before the softmax."""

    fill: float | None = None
    """What takes the place of a masked score; ``None`` for a mask that is added."""

    is_kept: bool = False
    """Whether the condition names the scores that stay rather than those filled."""


@dataclass(frozen=True)
class Walk:
    """What has been met on the way from the last product back to the first."""

    nodes: tuple[Node, ...] = ()
    factor: float = 1.0
    query_scale: Node | None = None
    query_is_divided: bool = False
    """Whether queries are divided by ``query_scale`` rather than multiplied."""

    grid: tuple[Size, ...] = ()
    """Queries and keys, as the softmax sees them."""

    masks: tuple[Mask, ...] = ()
    dropout_p: float = 0.0
    drops: bool = False
    steps: int = 0

    def past(self, node: Node) -> "Walk":
        """Returns the walk after ``node`` is consumed."""
        return replace(self, nodes=(*self.nodes, node), steps=self.steps + 1)

    def is_split(self, node: Node) -> bool:
        """Tells whether queries or keys are spread over several dimensions of ``node``."""
        shape = shape_of(node)
        return shape is None or not same_shape(shape[-2:], self.grid)


def is_product(node: Node) -> bool:
    """Tells whether ``node`` multiplies two (batches of) matrices."""
    return any(is_call(node, target) for target in (*PRODUCTS, _ATEN.baddbmm.default))


def is_softmax(node: Node) -> bool:
    """Tells whether ``node`` is a softmax."""
    return (
        is_call(node, _ATEN.softmax.int)
        or is_call(node, _ATEN._softmax.default)
        or isinstance(module_of(node), nn.Softmax)
    )


def broadcasts_alike(mask: Mask, product: Node) -> bool:
    """Tells whether the scores had the product's own shape where the mask was applied."""
    there, here = shape_of(mask.scores), shape_of(product)
    return there is not None and here is not None and same_shape(there, here)
