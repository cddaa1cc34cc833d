"""Spells a product of two tensors written as einsum as a matrix product."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import shape_of
from embedl_deploy.patterns.shapes import same_size
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class _Product:
    """An einsum that is one (batched) product of two matrices."""

    left: Node
    right: Node
    left_order: list[int]
    """Dimensions of the left operand as (batch..., rows, inner)."""

    right_order: list[int]
    """Dimensions of the right operand as (batch..., inner, columns)."""

    result_order: list[int]
    """Dimensions of (batch..., rows, columns) in the order of the einsum's result."""


class ReplaceEinsumWithMatmul(Pattern):
    """Replaces ``einsum("bhid,bhjd->bhij", q, k)`` and its like with ``q @ k.transpose(-2, -1)``.

    Takes two operands that share one summed index and have one index of their own each; others
    must be in both operands and in the result. Outputs move by rounding only.
    """

    phase = Phase.CONVERSION
    tree = Chain(einsum=Op(_ATEN.einsum.default, where=lambda node: _product_of(node) is not None))

    def replace(self, match: PatternMatch) -> Node:
        product = _product_of(match.root)
        assert product is not None
        left = _permuted(match, product.left, product.left_order)
        right = _permuted(match, product.right, product.right_order)
        result = match.call_function(_ATEN.matmul.default, left, right)
        return _permuted(match, result, product.result_order)


def _permuted(match: PatternMatch, node: Node, order: Sequence[int]) -> Node:
    rank = len(order)
    if list(order) == list(range(rank)):
        return node
    if list(order) == [*range(rank - 2), rank - 1, rank - 2]:
        return match.call_function(_ATEN.transpose.int, node, -2, -1)
    return match.call_function(_ATEN.permute.default, node, list(order))


def _product_of(node: Node) -> _Product | None:
    equation, operands = node.args[:2]
    if not isinstance(equation, str) or not isinstance(operands, (list, tuple)):
        return None
    if len(operands) != 2 or not all(isinstance(operand, Node) for operand in operands):
        return None
    letters = _letters(equation.replace(" ", ""))
    if letters is None:
        return None
    first, second, result = letters
    left, right = operands
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    summed = [letter for letter in first if letter in second and letter not in result]
    rows = [letter for letter in first if letter not in second]
    columns = [letter for letter in second if letter not in first]
    batch = [letter for letter in result if letter in first and letter in second]
    counts = (len(summed), len(rows), len(columns), len(result) - len(batch))
    if counts != (1, 1, 1, 2) or not _same_inner(left, right, first, second, summed[0]):
        return None
    made = [*batch, *rows, *columns]
    return _Product(
        left,
        right,
        [first.index(letter) for letter in (*batch, *rows, *summed)],
        [second.index(letter) for letter in (*batch, *summed, *columns)],
        [made.index(letter) for letter in result],
    )


def _letters(equation: str) -> tuple[str, str, str] | None:
    """Returns the indices of both operands and of the result, each index once."""
    inputs, arrow, result = equation.partition("->")
    first, comma, second = inputs.partition(",")
    groups = (first, second, result)
    if not arrow or not comma or any(len(set(group)) != len(group) for group in groups):
        return None
    return groups if all(group.isalpha() for group in groups) else None


def _same_inner(left: Node, right: Node, first: str, second: str, letter: str) -> bool:
    """Tells whether the summed index has one size; einsum would broadcast a size of 1."""
    left_shape, right_shape = shape_of(left), shape_of(right)
    if left_shape is None or right_shape is None:
        return False
    return same_size(left_shape[first.index(letter)], right_shape[second.index(letter)])
