"""What a pattern looks for: single nodes, values, literals; ``compose`` has runs and joins."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import cast

import torch
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import Target, bound_arguments, input_nodes, is_call
from embedl_deploy.rewriting.found import Found, Step
from embedl_deploy.rewriting.operands import (
    open_inputs,
    operand_orders,
    rest_is_default,
    same_literal,
    scales_are_plain,
)
from embedl_deploy.rewriting.targets import checked_name, checked_target, require_condition

Literal_ = bool | int | float | str | list[int] | torch.dtype | None


class Tree(ABC):
    """A shape of graph, matched from its last node backwards."""

    @abstractmethod
    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        """Yields every way in which ``value`` is the root of this shape, best first."""

    @abstractmethod
    def anchors(self) -> tuple[Target, ...] | None:
        """Returns what the root may run; None if anything."""

    def name_of(self) -> str | None:
        """Returns the name under which the root is captured, if it has one."""
        return None

    def __repr__(self) -> str:
        from embedl_deploy.rewriting.tree_text import tree_text

        return tree_text(self)


Spec = Tree | Target | Sequence["Spec"] | Literal_ | EllipsisType
"""How a tree is written: a target stands for ``Op(target)``, a tuple for ``OneOf``, a list that
holds any of these for a list argument, item by item."""


def as_tree(spec: object) -> Tree:
    """Returns the tree that ``spec`` stands for."""
    if isinstance(spec, Tree):
        return spec
    if isinstance(spec, tuple):
        from embedl_deploy.rewriting.compose import OneOf

        return OneOf(*cast("tuple[Spec, ...]", spec))
    if spec is ...:
        return Previous()
    if isinstance(spec, list):
        from embedl_deploy.rewriting.listed import tree_of_list

        return tree_of_list(cast("list[object]", spec))
    if spec is None or isinstance(spec, (bool, int, float, str, torch.dtype)):
        return Exactly(spec)
    if callable(spec):
        return Op(cast("Target", spec))
    raise PatternError(
        "a tree is made of module classes, ATen ops, functions, literals and trees, "
        f"got {spec!r} of type {type(spec).__name__}"
    )


class Op(Tree):
    """One node.

    Args:
        target: A module class (subclasses admitted), an ATen overload, an ATen op (any of its
            overloads) or a function.
        *inputs: What the arguments must be, by position. Left out: any arguments. Given: every
            argument beyond them must have its default, so that no literal is overlooked.
            ``...`` stands for the link before this one in a chain, a list for a list
            argument of as many items: ``Op(aten.cat.default, [..., Input()], 1)``.
        where: A condition on the node.
        literals: Values that arguments must have, by their schema name.
        **named_inputs: Further inputs by position, captured under their names.
    """

    def __init__(
        self,
        target: Target,
        *inputs: "Spec",
        where: Callable[[Node], bool] | None = None,
        literals: Mapping[str, object] | None = None,
        **named_inputs: "Spec",
    ) -> None:
        self.target = checked_target(target)
        require_condition("Op", where)
        self.keywords = tuple(named_inputs)
        self.inputs = (
            *(as_operand(item) for item in inputs),
            *(as_operand(item, name) for name, item in named_inputs.items()),
        )
        self.where = where
        self.literals = dict(literals or {})
        self._require_plain_literals()

    def anchors(self) -> tuple[Target, ...] | None:
        return (self.target,)

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if isinstance(value, Node) and is_call(value, self.target):
            yield from self.match_called(value, found)

    def match_called(self, value: Node, found: Found) -> Iterator[Step]:
        """Yields the matches at a node that is known to run the target."""
        if value in found.nodes or not self._admits_called(value):
            return
        found = found.consume(value)
        if not self.inputs:
            yield found, open_inputs(value)
            return
        for arguments in operand_orders(value):
            yield from self._match_inputs(value, arguments, found)

    def admits(self, node: Node) -> bool:
        """Tells whether the node itself fits, its inputs aside."""
        return is_call(node, self.target) and self._admits_called(node)

    def _require_plain_literals(self) -> None:
        from embedl_deploy.rewriting.listed import holds_tree

        for name, value in self.literals.items():
            if holds_tree(value):
                raise PatternError(
                    f"literals= of Op are plain values, and {name!r} holds a tree: list it among "
                    "the inputs, by position"
                )

    def _admits_called(self, node: Node) -> bool:
        if self.literals:
            bound = bound_arguments(node)
            if any(not same_literal(bound.get(name), v) for name, v in self.literals.items()):
                return False
        if not self.inputs and not scales_are_plain(node, self.literals):
            return False
        return self.where is None or self.where(node)

    def _match_inputs(
        self, node: Node, arguments: tuple[Argument, ...], found: Found
    ) -> Iterator[Step]:
        if len(arguments) < len(self.inputs) or not rest_is_default(
            node, len(self.inputs), self.literals
        ):
            return
        yield from matched_in_turn(self.inputs, arguments, found)


def matched_in_turn(
    trees: tuple[Tree, ...], arguments: Sequence[Argument], found: Found
) -> list[Step]:
    """Returns the ways in which the first arguments are the roots of ``trees``, one by one."""
    steps: list[Step] = [(found, ())]
    for tree, argument in zip(trees, arguments, strict=False):
        steps = [
            (after, before_open + open_nodes)
            for before, before_open in steps
            for after, open_nodes in tree.match(argument, before)
        ]
    return steps


class Input(Tree):
    """Any value, read by the match but not consumed."""

    def __init__(self, where: Callable[[Node], bool] | None = None) -> None:
        require_condition("Input", where)
        self.where = where

    def anchors(self) -> tuple[Target, ...] | None:
        return None

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if isinstance(value, Node) and (self.where is None or self.where(value)):
            yield found, ()


class Previous(Input):
    """The place of the link before this one in a chain; written ``...``."""

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if isinstance(value, Node):
            yield found, (value,)


class Exactly(Tree):
    """One literal value."""

    def __init__(self, value: object) -> None:
        self.value = value

    def anchors(self) -> tuple[Target, ...] | None:
        return ()

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if not isinstance(value, Node) and same_literal(value, self.value):
            yield found, ()


class Literal(Tree):
    """Any literal, captured under ``name`` for ``PatternMatch.literal``.

    A list that holds nodes is none.
    """

    def __init__(self, name: str, where: Callable[[object], bool] | None = None) -> None:
        self.name = checked_name("Literal", name)
        require_condition("Literal", where)
        self.where = where

    def anchors(self) -> tuple[Target, ...] | None:
        return ()

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if isinstance(value, Node) or (
            isinstance(value, (list, tuple)) and any(True for _ in input_nodes(value))
        ):
            return
        if self.where is not None and not self.where(value):
            return
        bound = found.capture_literal(self.name, value)
        if bound is not None:
            yield bound, ()


class Named(Tree):
    """A tree whose root is captured under a name."""

    def __init__(self, name: str, tree: "Spec") -> None:
        self.name = checked_name("Named", name)
        self.tree = as_tree(tree)
        if isinstance(self.tree, Literal):
            raise PatternError(
                f"Named({name!r}, …) names a node, and a literal is none: write "
                f"Literal({name!r}) alone to capture it"
            )
        from embedl_deploy.rewriting.listed import ListOf

        if isinstance(self.tree, ListOf):
            raise PatternError(
                f"Named({name!r}, …) names a node, and a list is none: name its items, "
                f"[Named({name!r}, …), …]"
            )

    def anchors(self) -> tuple[Target, ...] | None:
        return self.tree.anchors()

    def name_of(self) -> str | None:
        return self.name

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if not isinstance(value, Node):
            yield from self.tree.match(value, found)
            return
        known = found.captures.get(self.name)
        if known == (value,) and value in found.nodes:
            yield found, open_inputs(value)
            return
        for after, open_nodes in self.tree.match(value, found):
            bound = after.capture(self.name, (value,))
            if bound is not None:
                yield bound, open_nodes


def as_operand(spec: object, name: str | None = None) -> Tree:
    """Returns the tree for an operand: ``Maybe`` there stands for its tree or any value."""
    from embedl_deploy.rewriting.compose import Maybe, OneOf, named

    tree = as_tree(spec)
    if isinstance(tree, Maybe):
        return OneOf(as_operand(tree.tree, name), Input())
    return tree if name is None or isinstance(tree, (Exactly, Literal)) else named(name, tree)
