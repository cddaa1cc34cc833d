"""Spells a product of two tensors written as einsum as a matrix product."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import shape_of
from embedl_deploy.patterns.shapes import same_size
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal

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
    tree = Chain(einsum=_ATEN.einsum.default)

    def check(self, match: PatternMatch) -> Refusal | None:
        product = _product_of(match.root)
        return product if isinstance(product, Refusal) else None

    def replace(self, match: PatternMatch) -> Node:
        product = _product_of(match.root)
        assert isinstance(product, _Product)
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


def _product_of(node: Node) -> _Product | Refusal:
    equation, operands = node.args[:2]
    assert isinstance(equation, str)
    assert isinstance(operands, (list, tuple))
    if len(operands) != 2:
        return Refusal(f"it multiplies {len(operands)} tensors, not two", node)
    left, right = operands
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    letters = _letters(_without_dots(equation.replace(" ", ""), left, right))
    if letters is None:
        return Refusal(f"'{equation}' repeats an index, or leaves its result open", node)
    first, second, result = letters
    summed = [letter for letter in first if letter in second and letter not in result]
    rows = [letter for letter in first if letter not in second]
    columns = [letter for letter in second if letter not in first]
    batch = [letter for letter in result if letter in first and letter in second]
    counts = (len(summed), len(rows), len(columns), len(result) - len(batch))
    if counts != (1, 1, 1, 2):
        return Refusal(f"'{equation}' is no product of matrices", node)
    if not _same_inner(left, right, first, second, summed[0]):
        return Refusal(f"the index '{summed[0]}' of '{equation}' is broadcast", node)
    made = [*batch, *rows, *columns]
    return _Product(
        left,
        right,
        [first.index(letter) for letter in (*batch, *rows, *summed)],
        [second.index(letter) for letter in (*batch, *summed, *columns)],
        [made.index(letter) for letter in result],
    )


def _without_dots(equation: str, left: Node, right: Node) -> str:
    """Returns the equation with ``...`` spelled out, where both operands have as many of them."""
    if equation.count("...") != 3:
        return equation
    first, second = equation.partition("->")[0].split(",")
    ranks = [len(shape_of(node) or ()) for node in (left, right)]
    counts = [rank - len(part) + 3 for rank, part in zip(ranks, (first, second), strict=True)]
    unused = [letter for letter in ascii_letters if letter not in equation]
    return (
        equation.replace("...", "".join(unused[: counts[0]])) if len({*counts}) == 1 else equation
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
