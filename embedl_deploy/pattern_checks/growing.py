"""Grows a graph in which a tree fits."""

from random import Random
from typing import cast

import torch
from torch import FunctionSchema as Schema
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import Target, value_of
from embedl_deploy.graph.traced_module import TracedModule
from embedl_deploy.pattern_checks.layers import input_shape, make_layer
from embedl_deploy.pattern_checks.literals import (
    argument_value,
    as_tracing_spells,
    fitting_literals,
)
from embedl_deploy.pattern_checks.sketch import Sketch
from embedl_deploy.rewriting.compose import Chain, Maybe, OneOf, Wildcard, may_be_absent
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.operands import COMMUTATIVE
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Op, Previous, Tree

_SHAPES = ((4, 6), (2, 5, 6), (2, 4, 1, 1), (2, 4, 4, 4), (2, 2, 4, 4))
_LONGEST_RUN = 3


class CannotGrowError(Exception):
    """The draw made no graph in which the tree fits."""


def grow(tree: Tree, random: Random) -> tuple[TracedModule, Node]:
    """Returns a graph and the node that should be the root of ``tree`` in it.

    Conditions (``where``) are not looked at: whether the tree really fits is for the caller
    to see.

    Raises:
        CannotGrowError: This draw led nowhere.
    """
    grower = _Grower(random)
    try:
        root = grower.grow(tree, None)
    except CannotGrowError:
        raise
    except Exception as error:
        raise CannotGrowError(str(error)) from error
    if not isinstance(root, Node) or not isinstance(value_of(root), Tensor):
        raise CannotGrowError("the root yields no tensor")
    # What is returned to the caller may not always be rewritten: half the graphs go on.
    goes_on = random.random() < 0.5
    last = grower.sketch.call_function(torch.ops.aten.neg.default, (root,), {}) if goes_on else root
    return grower.sketch.finish(last), root


class _Grower:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.sketch = Sketch()
        self.named: dict[str, Argument] = {}
        self.shape = random.choice(_SHAPES)

    def grow(self, tree: Tree, feed: Node | None) -> Argument:
        """Returns what stands for ``tree``; ``feed`` is the link before it in a chain."""
        if isinstance(tree, Named):
            if tree.name not in self.named:
                self.named[tree.name] = self.grow(tree.tree, feed)
            return self.named[tree.name]
        if isinstance(tree, Chain):
            return self._chain(tree, feed)
        if isinstance(tree, OneOf):
            return self.grow(self.random.choice(tree.trees), feed)
        if isinstance(tree, Fork):
            return self._fork(tree, feed)
        if isinstance(tree, Op):
            return self._op(tree, feed)
        if isinstance(tree, ListOf):
            return self._list(tree, feed)
        return self._rest(tree, feed)

    def _rest(self, tree: Tree, feed: Node | None) -> Argument:
        if isinstance(tree, Maybe):
            return self.grow(tree.tree, feed)
        if isinstance(tree, Previous):
            return feed or self.sketch.input(self.shape)
        if isinstance(tree, Input):
            return self.sketch.input(self.shape)
        if isinstance(tree, Exactly):
            return cast("Argument", tree.value)
        if isinstance(tree, Literal):
            return self.random.choice(fitting_literals(tree.where) or [1])
        wildcard = tree if isinstance(tree, Wildcard) else getattr(tree, "wildcard", None)
        if isinstance(wildcard, Wildcard):
            return self._run(wildcard, feed)
        raise CannotGrowError(f"no graph is known for a {type(tree).__name__}")

    def _chain(self, tree: Chain, feed: Node | None) -> Argument:
        value: Argument = feed
        for link in tree.links:
            if may_be_absent(link) and self.random.random() < 0.4:
                continue
            value = self.grow(link, value if isinstance(value, Node) else None)
        return value

    def _run(self, tree: Wildcard, feed: Node | None) -> Argument:
        longest = min(tree.most, max(tree.least, _LONGEST_RUN))
        value = feed
        for _ in range(self.random.randint(max(tree.least, 1), longest)):
            targets = cast("tuple[Target, ...]", tree.targets or (nn.ReLU,))
            value = self._call(self.random.choice(targets), value)
        return value

    def _fork(self, tree: Fork, feed: Node | None) -> Argument:
        self._shape_like(feed)
        operands = [] if feed is None else [feed]
        for branch in tree.branches:
            grown = self.grow(branch, None)
            if not isinstance(grown, Node):
                raise CannotGrowError("a branch of a fork is a literal")
            operands.append(grown)
        join = self.random.choice(tree.joins).tree
        join = join.tree if isinstance(join, Named) else join
        target = _overload(getattr(join, "target", None))
        assert callable(target), "forks join by a call"
        literals = cast("dict[str, Argument]", getattr(join, "literals", {}))
        if target in COMMUTATIVE and not literals and self.random.random() < 0.5:
            operands.reverse()
        args = (operands,) if _joins_a_list(target) else tuple(operands)
        return self.sketch.call_function(target, args, dict(literals))

    def _list(self, tree: ListOf, feed: Node | None) -> list[Argument]:
        """Grows the items of a list argument, which have the shape of what feeds it."""
        self._shape_like(feed)
        return [self.grow(item, feed) for item in tree.trees]

    def _shape_like(self, feed: Node | None) -> None:
        value = None if feed is None else value_of(feed)
        if isinstance(value, Tensor):
            self.shape = tuple(int(size) for size in value.shape)

    def _op(self, tree: Op, feed: Node | None) -> Argument:
        if not tree.inputs:
            return self._call(tree.target, feed, cast("dict[str, Argument]", tree.literals))
        grown = [self.grow(inner, feed) for inner in tree.inputs]
        args = as_tracing_spells(_overload(cast("object", tree.target)), grown)
        if isinstance(tree.target, type) and issubclass(tree.target, nn.Module):
            first = args[0]
            if not isinstance(first, Node):
                raise CannotGrowError("a module reads a literal")
            layer = make_layer(tree.target, self._shape_of(first), self.random)
            return self.sketch.call_module(layer.module, *args)
        if tree.target in COMMUTATIVE and self._may_swap(args):
            args[:2] = reversed(args[:2])
        literals = cast("dict[str, Argument]", dict(tree.literals))
        return self.sketch.call_function(
            _overload(cast("object", tree.target)), tuple(args), literals
        )

    def _may_swap(self, args: list[Argument]) -> bool:
        both = all(isinstance(value, Node) for value in args[:2])
        return both and self.random.random() < 0.5

    def _call(
        self, target: Target, feed: Node | None, literals: dict[str, Argument] | None = None
    ) -> Node:
        """Adds a call whose first input is ``feed`` and whose other arguments are made up."""
        if isinstance(target, type) and issubclass(target, nn.Module):
            first = feed or self.sketch.input(input_shape(target, self.random))
            layer = make_layer(target, self._shape_of(first), self.random)
            others = [self.sketch.input(shape) for shape in layer.others]
            return self.sketch.call_module(layer.module, first, *others)
        overload = _overload(cast("object", target))
        first = feed or self.sketch.input(self.shape)
        if not isinstance(overload, OpOverload):
            return self.sketch.call_function(overload, (first,), {})
        schema = overload._schema  # pyright: ignore[reportPrivateUsage]  # torch offers no other way
        args, kwargs = self._arguments(schema, first, literals or {})
        return self.sketch.call_function(cast("object", overload), args, kwargs)

    def _arguments(
        self, schema: Schema, first: Node, literals: dict[str, Argument]
    ) -> tuple[tuple[Argument, ...], dict[str, Argument]]:
        shape = self._shape_of(first)
        args: list[Argument] = []
        kwargs: dict[str, Argument] = dict(literals)
        pending: Node | None = first
        for parameter in schema.arguments:
            kind = str(parameter.type)
            if parameter.name in literals or parameter.has_default_value():
                continue
            if kind == "Tensor" and pending is not None:
                value, pending = pending, None
            elif kind == "Tensor":
                value = self.random.choice((self.sketch.input(shape), 1, 0, 2.0))
            elif "Tensor" in kind:
                value = [first, self.sketch.input(shape)]
                pending = None
            else:
                value = argument_value(parameter.name, kind, shape, self.random)
            if parameter.kwarg_only:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def _shape_of(self, node: Node) -> tuple[int, ...]:
        value = value_of(node)
        if not isinstance(value, Tensor):
            raise CannotGrowError(f"%{node.name} yields no tensor")
        return tuple(int(size) for size in value.shape)


def _joins_a_list(target: object) -> bool:
    if not isinstance(target, OpOverload):
        return False
    first, *_ = target._schema.arguments  # pyright: ignore[reportPrivateUsage]  # torch offers no other way
    return "List[Tensor" in str(first.type)


def _overload(target: object) -> object:
    overloads = getattr(target, "overloads", None)
    if not callable(overloads):
        return target
    names = cast("list[str]", overloads())
    return cast("object", getattr(target, "default" if "default" in names else names[0]))
