"""Near matching of single nodes."""

from collections.abc import Iterator

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import is_call
from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.compose import OneOf
from embedl_deploy.rewriting.describe import describe
from embedl_deploy.rewriting.difference import differ
from embedl_deploy.rewriting.near_steps import Near, NearStep
from embedl_deploy.rewriting.objections import (
    Place,
    extra_node,
    missing_operand,
    not_computed,
    not_default,
    objections,
    swapped_operands,
    wrong_target,
)
from embedl_deploy.rewriting.operands import COMMUTATIVE, commutes, open_inputs, operand_orders
from embedl_deploy.rewriting.tree import Named, Op, Tree


def near_op(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Op``."""
    assert isinstance(tree, Op)
    if not isinstance(value, Node):
        for after in attempt.forgive(not_computed(place, describe(tree), value)):
            yield after, ()
    elif value in attempt.found.nodes:
        return
    elif is_call(value, tree.target):
        yield from _called(near, tree, value, attempt)
    else:
        yield from _substituted(near, tree, value, attempt, place)


def near_operand(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Yields what ``near`` does, and the ways with a node too many or missing before ``value``."""
    yield from near(tree, value, attempt, place)
    ops = list(_ops_of(tree))
    if not ops or not isinstance(value, Node):
        return
    if value.op.startswith("call_"):
        for after in attempt.forgive(extra_node(tree, value)):
            for node in open_inputs(value):
                yield from near(tree, node, after, place)
    for op in ops:
        for after in attempt.forgive(missing_operand(op, value, place)):
            for inner in op.inputs:
                yield from near(inner, value, after, place)


def _ops_of(tree: Tree) -> Iterator[Op]:
    """Yields the calls that ``tree`` may be, where it is nothing but calls."""
    if isinstance(tree, Op):
        yield tree
    elif isinstance(tree, Named):
        yield from _ops_of(tree.tree)
    elif isinstance(tree, OneOf):
        for option in tree.trees:
            yield from _ops_of(option)


def _called(near: Near, tree: Op, value: Node, attempt: Attempt) -> Iterator[NearStep]:
    """Yields the ways in which a node that runs the target fits."""
    taken = attempt.take(value, fits=True)
    for after in taken.forgive_all(list(objections(tree, value))):
        if not tree.inputs:
            yield after, open_inputs(value)
            continue
        for arguments in operand_orders(value):
            yield from _near_inputs(near, tree, value, arguments, after)
        if not commutes(value) and min(len(tree.inputs), len(value.args)) >= 2:
            first, second, *rest = next(operand_orders(value))
            for swapped in after.forgive(swapped_operands(tree, value)):
                yield from _near_inputs(near, tree, value, (second, first, *rest), swapped)


def _substituted(
    near: Near, tree: Op, value: Node, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Yields the attempt with ``value`` in the place of what the tree asks for."""
    for after in attempt.forgive(wrong_target(value, tree, place)):
        if value.op not in ("call_function", "call_module"):
            yield after, ()
            continue
        taken = after.take(value, fits=False)
        for arguments in _orders_for(tree, value) if tree.inputs else ():
            if len(arguments) >= len(tree.inputs):
                yield from _near_arguments(near, tree, value, arguments, taken)
        yield taken, tuple(value.all_input_nodes)


def _orders_for(tree: Op, value: Node) -> Iterator[tuple[Argument, ...]]:
    """Yields the arguments of a node that stands for ``tree``, swapped if either call commutes."""
    yield from operand_orders(value)
    if tree.target in COMMUTATIVE and value.target not in COMMUTATIVE and len(value.args) >= 2:
        first, second, *rest = value.args
        yield (second, first, *rest)


def _near_inputs(
    near: Near, tree: Op, node: Node, arguments: tuple[Argument, ...], attempt: Attempt
) -> Iterator[NearStep]:
    if len(arguments) < len(tree.inputs):
        expected, found = f"{len(tree.inputs)} arguments", f"{len(arguments)}"
        cure = "spell the call with all of them, or list fewer in the tree"
        for after in attempt.forgive(differ("argument", node, expected, found, cure)):
            yield after, ()
        return
    for after in attempt.forgive_all(list(not_default(tree, node))):
        yield from _near_arguments(near, tree, node, arguments, after)


def _near_arguments(
    near: Near, tree: Op, node: Node, arguments: tuple[Argument, ...], attempt: Attempt
) -> Iterator[NearStep]:
    place = Place(node)
    steps: list[NearStep] = [(attempt, ())]
    for position, (inner, argument) in enumerate(zip(tree.inputs, arguments, strict=False)):
        steps = [
            (after, before_open + open_nodes)
            for before, before_open in steps
            for after, open_nodes in near_operand(near, inner, argument, before, place.of(position))
        ]
    yield from steps
