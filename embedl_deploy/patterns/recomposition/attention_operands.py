"""Reads the operands of an attention's products: past scales and transposes."""

import torch
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, dtype_of, is_call, shape_of
from embedl_deploy.patterns.literals import number_of
from embedl_deploy.patterns.recomposition.attention_walk import Walk

_ATEN = torch.ops.aten


def operands_of(product: Node) -> tuple[Node, Node]:
    """Returns the two matrices that ``product`` multiplies."""
    first, second = product.args[-2:]
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    return first, second


def factor_of(product: Node) -> float:
    """Returns what ``product`` multiplies its result by."""
    if not is_call(product, _ATEN.baddbmm.default):
        return 1.0
    alpha = number_of(bound_arguments(product)["alpha"])
    return 1.0 if alpha is None else alpha


def unscaled(node: Node, reader: Node, walk: Walk) -> tuple[Node, float, Walk]:
    """Returns what a scaled operand is made from, and the scale, if nothing else reads it."""
    divides = is_call(node, _ATEN.div.Tensor)
    if not (divides or is_call(node, _ATEN.mul.Tensor)) or set(node.users) != {reader}:
        return node, 1.0, walk
    for position in (0,) if divides else (0, 1):
        inner, number = node.args[position], number_of(node.args[1 - position])
        if isinstance(inner, Node) and number and dtype_of(inner) == dtype_of(node):
            scale = 1 / number if divides else number
            return inner, scale, walk.past(node)
    return node, 1.0, walk


def own(node: Node, reader: Node, walk: Walk) -> Walk:
    """Consumes an operand if nothing else reads it."""
    return walk.past(node) if set(node.users) == {reader} else walk


def transposed(node: Node) -> Node | None:
    """Returns x where ``node`` is x with its last two dimensions swapped."""
    shape = shape_of(node)
    if shape is None or len(shape) < 2 or not node.args or not isinstance(node.args[0], Node):
        return None
    rank = len(shape)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    bound = bound_arguments(node)
    if is_call(node, _ATEN.transpose.int):
        dims = {_dim(bound["dim0"], rank), _dim(bound["dim1"], rank)}
        return node.args[0] if dims == {rank - 2, rank - 1} else None
    if is_call(node, _ATEN.permute.default):
        order = bound["dims"]
        assert isinstance(order, (list, tuple))
        return node.args[0] if tuple(_dim(dim, rank) for dim in order) == swapped else None
    is_matrix = is_call(node, _ATEN.t.default) or is_call(node, _ATEN.numpy_T.default)
    if is_call(node, _ATEN.mT.default) or (is_matrix and rank == 2):
        return node.args[0]
    return None


def _dim(dim: Argument, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank
