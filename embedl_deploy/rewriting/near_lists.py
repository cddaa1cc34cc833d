"""Near matching of list arguments."""

from collections.abc import Iterator, Sequence
from itertools import permutations

from torch.fx.node import Argument

from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.describe import describe, describe_list
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.near_calls import near_operand
from embedl_deploy.rewriting.near_steps import Near, NearStep, exact
from embedl_deploy.rewriting.objections import Place, other_list, reordered
from embedl_deploy.rewriting.tree import Tree

_MOST_REORDERED = 4


def near_list(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``ListOf``."""
    assert isinstance(tree, ListOf)
    if not isinstance(value, (list, tuple)) or len(value) != len(tree.trees):
        for after in attempt.forgive(other_list(place, tree, value)):
            yield after, ()
        return
    steps: list[NearStep] = [(attempt, ())]
    for position, (inner, item) in enumerate(zip(tree.trees, value, strict=True)):
        there = place.item(position)
        steps = [
            (after, before_open + open_nodes)
            for before, before_open in steps
            for after, open_nodes in near_operand(near, inner, item, before, there)
        ]
    yield from steps
    yield from _in_another_order(tree, value, attempt, place)


def _in_another_order(
    tree: ListOf, items: Sequence[Argument], attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    if len(items) > _MOST_REORDERED:
        return
    found = f"{describe_list(items)}, in another order"
    for after in attempt.forgive(reordered(place, describe(tree), found)):
        for order in list(permutations(range(len(items))))[1:]:
            yield from exact(tree, [items[position] for position in order], after)
