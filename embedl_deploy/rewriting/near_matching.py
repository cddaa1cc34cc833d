"""Matches trees with a few differences forgiven and noted; the exact matcher is the trees' own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import input_nodes, is_call
from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.compose import Chain, Fork, Maybe, OneOf, may_be_absent
from embedl_deploy.rewriting.describe import describe, describe_target, short_label
from embedl_deploy.rewriting.difference import differ
from embedl_deploy.rewriting.objections import (
    Place,
    extra_node,
    missing_link,
    not_computed,
    not_default,
    objections,
    other_literal,
    wrong_target,
)
from embedl_deploy.rewriting.tree import (
    Exactly,
    Input,
    Literal,
    Named,
    Op,
    Previous,
    Tree,
    open_inputs,
    operand_orders,
)
from embedl_deploy.rewriting.what_if import failed_condition

NearStep = tuple[Attempt, tuple[Node, ...]]
_Handler = Callable[[Tree, Argument, Attempt, Place], Iterator[NearStep]]


def near(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    """Yields the ways in which ``value`` is the root of ``tree`` but for a few differences."""
    if len(attempt.differences) == attempt.budget:
        yield from _exact(tree, value, attempt)
        return
    handler = next((_HANDLERS[kind] for kind in type(tree).__mro__ if kind in _HANDLERS), _whole)
    yield from handler(tree, value, attempt, place)


def _whole(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    """Handles trees that cannot be looked into."""
    exact = list(_exact(tree, value, attempt))
    yield from exact
    if exact:
        return
    node = value if isinstance(value, Node) else place.reader
    for after in attempt.forgive(wrong_target(node, describe(tree))):
        yield after, ()


def _exact(tree: Tree, value: Argument, attempt: Attempt) -> Iterator[NearStep]:
    for found, open_nodes in tree.match(value, attempt.found):
        taken = found.nodes[len(attempt.found.nodes) :]
        yield replace(attempt, found=found, fitting=(*attempt.fitting, *taken)), open_nodes


def _near_op(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    assert isinstance(tree, Op)
    if not isinstance(value, Node):
        for after in attempt.forgive(not_computed(place, describe(tree), value)):
            yield after, ()
        return
    if value in attempt.found.nodes:
        return
    if not is_call(value, tree.target):
        yield from _substitute(tree, value, attempt)
        return
    taken = attempt.take(value, fits=True)
    for after in taken.forgive_all(list(objections(tree, value))):
        if not tree.inputs:
            yield after, open_inputs(value)
            continue
        for arguments in operand_orders(value):
            yield from _near_inputs(tree, value, arguments, after)


def _substitute(tree: Op, value: Node, attempt: Attempt) -> Iterator[NearStep]:
    """Yields the attempt with ``value`` in the place of what the tree asks for."""
    expected = describe_target(tree.target)
    if value.op not in ("call_function", "call_module"):
        for after in attempt.forgive(wrong_target(value, expected)):
            yield after, ()
        return
    for after in attempt.forgive(wrong_target(value, expected)):
        taken = after.take(value, fits=False)
        if not tree.inputs:
            yield taken, tuple(value.all_input_nodes)
            continue
        for arguments in operand_orders(value):
            if len(arguments) >= len(tree.inputs):
                yield from _near_arguments(tree, value, arguments, taken)


def _near_inputs(
    tree: Op, node: Node, arguments: tuple[Argument, ...], attempt: Attempt
) -> Iterator[NearStep]:
    if len(arguments) < len(tree.inputs):
        expected, found = f"{len(tree.inputs)} arguments", f"{len(arguments)}"
        cure = "spell the call with all of them, or list fewer in the tree"
        for after in attempt.forgive(differ("argument", node, expected, found, cure)):
            yield after, ()
        return
    for after in attempt.forgive_all(list(not_default(tree, node))):
        yield from _near_arguments(tree, node, arguments, after)


def _near_arguments(
    tree: Op, node: Node, arguments: tuple[Argument, ...], attempt: Attempt
) -> Iterator[NearStep]:
    place = Place(node)
    steps: list[NearStep] = [(attempt, ())]
    for position, (inner, argument) in enumerate(zip(tree.inputs, arguments, strict=False)):
        steps = [
            (after, before_open + open_nodes)
            for before, before_open in steps
            for after, open_nodes in near(inner, argument, before, place.of(position))
        ]
    yield from steps


def _near_value(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    """Handles ``Input`` and ``Previous``."""
    assert isinstance(tree, Input)
    if not isinstance(value, Node):
        for after in attempt.forgive(not_computed(place, describe(tree), value)):
            yield after, ()
        return
    open_nodes = (value,) if isinstance(tree, Previous) else ()
    if tree.where is None or tree.where(value):
        yield attempt, open_nodes
        return
    for after in attempt.forgive(failed_condition(tree.where, value)):
        yield after, open_nodes


def _near_literal(
    tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Exactly`` and ``Literal``."""
    exact = list(_exact(tree, value, attempt))
    yield from exact
    if exact:
        return
    for after in attempt.forgive(other_literal(place, describe(tree), value)):
        yield after, ()


def _near_named(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    assert isinstance(tree, Named)
    if not isinstance(value, Node):
        yield from near(tree.tree, value, attempt, place)
        return
    known = attempt.found.captures.get(tree.name)
    if known == (value,) and value in attempt.found.nodes:
        yield attempt, open_inputs(value)
        return
    for after, open_nodes in near(tree.tree, value, attempt, place):
        bound = after.found.capture(tree.name, (value,))
        if bound is not None:
            yield replace(after, found=bound), open_nodes
            continue
        first = after.found.captures[tree.name][-1]
        expected = f"{tree.name!r} to be %{first.name} again"
        cure = f"read %{first.name} in both places, or give the second place a name of its own"
        found = f"%{value.name} = {short_label(value)}"
        for forgiven in after.forgive(differ("same value", place.reader, expected, found, cure)):
            yield forgiven, open_nodes


def _near_maybe(tree: Tree, value: Argument, attempt: Attempt, _: Place) -> Iterator[NearStep]:
    """An optional link that does not fit is absent: nothing is forgiven."""
    assert isinstance(tree, Maybe)
    yield from _exact(tree.tree, value, attempt)


def _near_one_of(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    assert isinstance(tree, OneOf)
    likely = [option for option in tree.trees if _may_start(option, value)]
    for option in likely:
        yield from near(option, value, attempt, place)
    if likely:
        return
    if not isinstance(value, Node):
        for after in attempt.forgive(not_computed(place, describe(tree), value)):
            yield after, ()
        return
    for after in attempt.forgive(wrong_target(value, describe(tree))):
        if value.op in ("call_function", "call_module"):
            yield after.take(value, fits=False), tuple(value.all_input_nodes)
        else:
            yield after, ()


def _may_start(tree: Tree, value: Argument) -> bool:
    anchors = tree.anchors()
    if not isinstance(value, Node):
        return isinstance(tree, (Exactly, Literal))
    return anchors is None or any(is_call(value, anchor) for anchor in anchors)


def _near_chain(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    assert isinstance(tree, Chain)
    yield from _near_links(tree, len(tree.links) - 1, value, attempt, place)


def _near_links(
    tree: Chain, last: int, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    link = tree.links[last]
    for after, open_nodes in near(link, value, attempt, place):
        if last == 0:
            yield after, open_nodes
        for node in open_nodes if last else ():
            yield from _near_links(tree, last - 1, node, after, place)
    if last > 0 and may_be_absent(link):
        yield from _near_links(tree, last - 1, value, attempt, place)
    if isinstance(value, Node):
        yield from _without_link(tree, last, value, attempt, place)
        yield from _behind_extra_node(tree, last, value, attempt, place)


def _without_link(
    tree: Chain, last: int, value: Node, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    if last == 0 or may_be_absent(tree.links[last]):
        return
    for after in attempt.forgive(missing_link(tree, last, value)):
        yield from _near_links(tree, last - 1, value, after, place)


def _behind_extra_node(
    tree: Chain, last: int, value: Node, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    if not attempt.found.nodes or not value.op.startswith("call_"):
        return
    for after in attempt.forgive(extra_node(tree.links[last], value)):
        for node in open_inputs(value):
            yield from _near_links(tree, last, node, after, place)


def _near_fork(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
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
            yield from _near_branches(tree, value, operands, order, after)


def _near_branches(
    tree: Fork, node: Node, operands: tuple[Node, ...], order: tuple[int, ...], attempt: Attempt
) -> Iterator[NearStep]:
    rest = tuple(operand for i, operand in enumerate(operands) if i not in order)
    steps: list[NearStep] = [(attempt, rest)]
    for branch, position in zip(tree.branches, order, strict=True):
        steps = [
            (after, open_nodes)
            for before, open_nodes in steps
            for after, _ in near(branch, operands[position], before, Place(node))
        ]
    yield from steps


def _too_few_operands(tree: Fork, node: Node, found: int, attempt: Attempt) -> Iterator[NearStep]:
    expected = f"at least {len(tree.branches)} computed operands"
    cure = "join computed values there, or take the branch out of the Fork"
    for after in attempt.forgive(differ("argument", node, expected, str(found), cure)):
        yield after, ()


_HANDLERS: dict[type, _Handler] = {
    Op: _near_op,
    Input: _near_value,
    Exactly: _near_literal,
    Literal: _near_literal,
    Named: _near_named,
    Maybe: _near_maybe,
    OneOf: _near_one_of,
    Chain: _near_chain,
    Fork: _near_fork,
}
