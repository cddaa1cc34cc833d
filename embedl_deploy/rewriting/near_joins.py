"""Near matching of chains and forks."""

from collections.abc import Iterator, Sequence
from itertools import permutations

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.compose import Chain, Maybe, may_be_absent
from embedl_deploy.rewriting.describe import describe
from embedl_deploy.rewriting.difference import Difference, differ
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.near_calls import near_operand
from embedl_deploy.rewriting.near_steps import Near, NearStep, exact
from embedl_deploy.rewriting.objections import (
    Place,
    extra_node,
    missing_link,
    not_computed,
    other_argument,
    reordered,
)
from embedl_deploy.rewriting.operands import (
    joined_operands,
    joining_orders,
    not_joined,
    open_inputs,
)
from embedl_deploy.rewriting.tree import Tree

_MOST_REORDERED = 4


def near_maybe(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """An optional link that does not fit is absent: nothing is forgiven."""
    del near, place
    assert isinstance(tree, Maybe)
    yield from exact(tree.tree, value, attempt)


def near_chain(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Chain``."""
    assert isinstance(tree, Chain)
    yield from _near_links(near, tree, len(tree.links) - 1, value, attempt, place)


def _near_links(
    near: Near, tree: Chain, last: int, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    link = tree.links[last]
    for after, open_nodes in near(link, value, attempt, place):
        if last == 0:
            yield after, open_nodes
        for node in open_nodes if last else ():
            yield from _near_links(near, tree, last - 1, node, after, place)
    if last > 0 and may_be_absent(link):
        yield from _near_links(near, tree, last - 1, value, attempt, place)
    if isinstance(value, Node):
        yield from _without_link(near, tree, last, value, attempt, place)
        yield from _behind_extra_node(near, tree, last, value, attempt, place)


def _without_link(
    near: Near, tree: Chain, last: int, value: Node, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    if last == 0 or may_be_absent(tree.links[last]):
        return
    for after in attempt.forgive(missing_link(tree, last, value)):
        yield from _near_links(near, tree, last - 1, value, after, place)


def _behind_extra_node(
    near: Near, tree: Chain, last: int, value: Node, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    if not attempt.found.nodes or not value.op.startswith("call_"):
        return
    for after in attempt.forgive(extra_node(tree.links[last], value)):
        for node in open_inputs(value):
            yield from _near_links(near, tree, last, node, after, place)


def near_fork(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Fork``."""
    assert isinstance(tree, Fork)
    if not isinstance(value, Node):
        for after in attempt.forgive(not_computed(place, describe(tree), value)):
            yield after, ()
        return
    if not value.op.startswith("call_"):
        yield from near(tree.join, value, attempt, place)
        return
    operands = joined_operands(value)
    for join in tree.joins:
        others = list(not_joined(value, join.listed, join.literals))
        for joined, _ in near(join.tree, value, attempt, place):
            for after in joined.forgive_all([other_argument(value, name) for name in others]):
                yield from _joined(near, tree, value, operands, after)


def _joined(
    near: Near, tree: Fork, node: Node, operands: tuple[Node, ...], attempt: Attempt
) -> Iterator[NearStep]:
    if len(operands) not in tree.counts:
        for after in attempt.forgive(_other_count(tree, node, len(operands))):
            yield after, operands
        return
    orders = list(joining_orders(node, len(operands), len(tree.branches)))
    for order in orders:
        yield from _near_branches(near, tree, node, operands, order, attempt)
    if len(operands) <= _MOST_REORDERED:
        yield from _in_another_order(near, tree, node, operands, orders, attempt)


def _in_another_order(
    near: Near,
    tree: Fork,
    node: Node,
    operands: tuple[Node, ...],
    known: Sequence[tuple[int, ...]],
    attempt: Attempt,
) -> Iterator[NearStep]:
    first = ["the link before"] if len(operands) > len(tree.branches) else []
    expected = ", ".join([*first, *map(describe, tree.branches)])
    others = permutations(range(len(operands)), len(tree.branches))
    orders = [order for order in others if order not in known]
    for after in attempt.forgive(reordered(Place(node), expected, "them in another order")):
        for order in orders:
            for step in _near_branches(near, tree, node, operands, order, after):
                if step[0].differences == after.differences:
                    yield step


def _near_branches(
    near: Near,
    tree: Fork,
    node: Node,
    operands: tuple[Node, ...],
    order: tuple[int, ...],
    attempt: Attempt,
) -> Iterator[NearStep]:
    rest = tuple(operand for i, operand in enumerate(operands) if i not in order)
    steps: list[NearStep] = [(attempt, rest)]
    for branch, position in zip(tree.branches, order, strict=True):
        steps = [
            (after, open_nodes)
            for before, open_nodes in steps
            for after, _ in near_operand(near, branch, operands[position], before, Place(node))
        ]
    yield from steps


def _other_count(tree: Fork, node: Node, found: int) -> Difference:
    few = found < len(tree.branches)
    least = "at least " if few else ""
    expected = f"{least}{' or '.join(map(str, tree.counts))} computed operands"
    cure = (
        "join computed values there, or take the branch out of the Fork"
        if few
        else "give the Fork a branch for each operand; only a link before it may be left out"
    )
    return differ("argument", node, expected, str(found), cure)
