"""How matching with differences goes on: the types that its parts share."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.objections import Place
from embedl_deploy.rewriting.tree import Tree

NearStep = tuple[Attempt, tuple[Node, ...]]
"""A way to fit, and the nodes that the link before it in a chain may be."""


class Near(Protocol):
    """Matches a tree with a few differences forgiven."""

    def __call__(
        self, tree: Tree, value: Argument, attempt: Attempt, place: Place
    ) -> Iterator[NearStep]:
        """Yields the ways in which ``value`` is the root of ``tree`` but for differences."""
        ...


class Handler(Protocol):
    """Does so for trees of one kind; ``near`` is for the trees inside."""

    def __call__(
        self, near: Near, tree: Tree, value: Argument, attempt: Attempt, place: Place
    ) -> Iterator[NearStep]:
        """Yields the ways in which ``value`` is the root of ``tree`` but for differences."""
        ...


def exact(tree: Tree, value: Argument, attempt: Attempt) -> Iterator[NearStep]:
    """Yields the ways in which ``value`` is the root of ``tree`` without a difference more."""
    for found, open_nodes in tree.match(value, attempt.found):
        taken = found.nodes[len(attempt.found.nodes) :]
        yield replace(attempt, found=found, fitting=(*attempt.fitting, *taken)), open_nodes
