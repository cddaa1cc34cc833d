"""Trees of list arguments: the tensors of a ``cat``, the indices of an ``index``, sizes."""

from collections.abc import Iterator
from typing import cast

import torch
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting.found import Found, Step
from embedl_deploy.rewriting.tree import Exactly, Spec, Tree, as_operand, matched_in_turn


class ListOf(Tree):
    """A list of exactly as many items as there are trees, item by item; written ``[a, b]``."""

    def __init__(self, *items: Spec) -> None:
        self.trees = tuple(as_operand(item) for item in items)

    def anchors(self) -> tuple[Target, ...] | None:
        return ()

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if isinstance(value, (list, tuple)) and len(value) == len(self.trees):
            yield from matched_in_turn(self.trees, value, found)


def tree_of_list(items: list[object]) -> Tree:
    """Returns the tree of a list: of its items if one of them is a tree, else of the literal."""
    if holds_tree(items):
        return ListOf(*cast("list[Spec]", items))
    return Exactly(items)


def holds_tree(spec: object) -> bool:
    """Tells whether a spec is, or a list or tuple holds, anything but plain values."""
    if isinstance(spec, (list, tuple)):
        return any(holds_tree(item) for item in cast("list[object]", spec))
    is_plain = spec is None or isinstance(spec, (bool, int, float, str, torch.dtype))
    return not is_plain and (isinstance(spec, Tree) or spec is ... or callable(spec))
