"""Matches trees with a few differences forgiven and noted; the exact matcher is the trees' own."""

from collections.abc import Iterator

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.compose import Chain, Maybe, NamedRun, OneOf, Wildcard
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.near_calls import near_op
from embedl_deploy.rewriting.near_joins import near_chain, near_fork, near_maybe
from embedl_deploy.rewriting.near_lists import near_list
from embedl_deploy.rewriting.near_runs import near_run
from embedl_deploy.rewriting.near_steps import Handler, Near, NearStep, exact
from embedl_deploy.rewriting.near_values import (
    near_literal,
    near_named,
    near_one_of,
    near_value,
)
from embedl_deploy.rewriting.objections import Place, wrong_target
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Op, Tree


def near(tree: Tree, value: Argument, attempt: Attempt, place: Place) -> Iterator[NearStep]:
    """Yields the ways in which ``value`` is the root of ``tree`` but for a few differences."""
    if len(attempt.differences) == attempt.budget:
        yield from exact(tree, value, attempt)
        return
    handler = next((_HANDLERS[kind] for kind in type(tree).__mro__ if kind in _HANDLERS), _whole)
    yield from handler(near, tree, value, attempt, place)


def _whole(
    near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
) -> Iterator[NearStep]:
    """Handles trees that cannot be looked into."""
    del near
    fitting = list(exact(tree, value, attempt))
    yield from fitting
    if fitting:
        return
    node = value if isinstance(value, Node) else place.reader
    for after in attempt.forgive(wrong_target(node, tree, place)):
        yield after, ()


_HANDLERS: dict[type, Handler] = {
    Op: near_op,
    Input: near_value,
    Exactly: near_literal,
    Literal: near_literal,
    Named: near_named,
    Maybe: near_maybe,
    OneOf: near_one_of,
    Chain: near_chain,
    Fork: near_fork,
    ListOf: near_list,
    Wildcard: near_run,
    NamedRun: near_run,
}
