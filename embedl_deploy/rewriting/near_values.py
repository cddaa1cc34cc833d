"""Near matching of values, literals, names and alternatives."""

from collections.abc import Iterator
from dataclasses import replace

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import is_call
from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.compose import OneOf
from embedl_deploy.rewriting.describe import describe, describe_value, short_label
from embedl_deploy.rewriting.difference import differ
from embedl_deploy.rewriting.found import Found
from embedl_deploy.rewriting.near_steps import Near, NearStep, exact
from embedl_deploy.rewriting.objections import Place, not_computed, other_literal, wrong_target
from embedl_deploy.rewriting.operands import open_inputs
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Previous, Tree
from embedl_deploy.rewriting.what_if import failed_condition


def near_value(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Input`` and ``Previous``."""
    del near
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


def near_literal(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Exactly`` and ``Literal``."""
    del near
    fitting = list(exact(tree, value, attempt))
    yield from fitting
    if fitting:
        return
    if isinstance(tree, Literal) and tree.name in attempt.found.literals and _admits(tree, value):
        known = attempt.found.literals[tree.name]
        expected = f"the literal {tree.name!r} to be {known!r} again"
        cure = f"read {known!r} in both places, or give the second place a name of its own"
        found = describe_value(value)
        for after in attempt.forgive(differ("same value", place.reader, expected, found, cure)):
            yield after, ()
        return
    for after in attempt.forgive(other_literal(place, describe(tree), value)):
        yield after, ()


def _admits(tree: Literal, value: Argument) -> bool:
    """Tells whether a literal would fit, had its name not another value already."""
    return next(tree.match(value, Found()), None) is not None


def near_named(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``Named``."""
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


def near_one_of(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles ``OneOf``."""
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
    for after in attempt.forgive(wrong_target(value, tree, place)):
        if value.op in ("call_function", "call_module"):
            yield after.take(value, fits=False), tuple(value.all_input_nodes)
        else:
            yield after, ()


def _may_start(tree: Tree, value: Argument) -> bool:
    anchors = tree.anchors()
    if not isinstance(value, Node):
        return isinstance(tree, (Exactly, Literal))
    return anchors is None or any(is_call(value, anchor) for anchor in anchors)
