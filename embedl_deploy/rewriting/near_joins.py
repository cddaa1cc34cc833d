"""Near matching of chains and forks."""

from collections.abc import Iterator
from itertools import permutations

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import input_nodes
from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.compose import Chain, Fork, Maybe, may_be_absent
from embedl_deploy.rewriting.describe import describe
from embedl_deploy.rewriting.difference import differ
from embedl_deploy.rewriting.near_calls import near_operand
from embedl_deploy.rewriting.near_steps import Near, NearStep, exact
from embedl_deploy.rewriting.objections import Place, extra_node, missing_link, not_computed
from embedl_deploy.rewriting.operands import open_inputs
from embedl_deploy.rewriting.tree import Tree


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
    operands = tuple(input_nodes((value.args, value.kwargs)))
    for after, _ in near(tree.join, value, attempt, place):
        if len(operands) < len(tree.branches):
            yield from _too_few_operands(tree, value, len(operands), after)
        for order in permutations(range(len(operands)), len(tree.branches)):
            yield from _near_branches(near, tree, value, operands, order, after)


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


def _too_few_operands(tree: Fork, node: Node, found: int, attempt: Attempt) -> Iterator[NearStep]:
    expected = f"at least {len(tree.branches)} computed operands"
    cure = "join computed values there, or take the branch out of the Fork"
    for after in attempt.forgive(differ("argument", node, expected, str(found), cure)):
        yield after, ()
