"""Trees that join several values in one call."""

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting.found import Found, Step
from embedl_deploy.rewriting.operands import joined_operands, joining_orders, not_joined
from embedl_deploy.rewriting.tree import (
    Exactly,
    Input,
    Literal,
    Named,
    Op,
    Spec,
    Tree,
    as_operand,
    as_tree,
)


@dataclass(frozen=True)
class Join:
    """One way to join the branches of a fork."""

    tree: Tree
    """The call."""

    listed: int = 0
    """How many arguments the tree lists itself."""

    literals: frozenset[str] = frozenset()
    """Arguments that the tree names itself."""


class Fork(Tree):
    """A node that joins several values.

    The branches are its operands, or the items of a list that it joins: of a call that commutes in
    either order, of any other (``sub``, ``cat``, ``where``) in the order listed. Behind a link of
    a chain one operand may be left over. It is that link, the first operand where the call does
    not commute: ``Chain(conv=nn.Conv2d, add=Fork(aten.add.Tensor, skip=Input()))``.

    Every argument that is no operand must have its default, or be named:
    ``Fork(Op(aten.cat.default, literals={"dim": 1}), left=Input(), right=Input())``.
    """

    def __init__(self, join: Spec, *branches: Spec, **named_branches: Spec) -> None:
        self.join = as_tree(join)
        if isinstance(self.join, (Exactly, Literal, Input)) or self.join.anchors() == ():
            raise PatternError(
                f"a Fork joins its branches by a call, got {join!r} of type {type(join).__name__}: "
                "write an ATen op, a module class or an Op"
            )
        if isinstance(named_branches.get("literals"), Mapping):
            raise PatternError(
                "keywords of a Fork are branches: write literals= in its join, "
                "Fork(Op(op, literals={…}), …)"
            )
        trees = [as_operand(branch) for branch in branches]
        trees += [as_operand(branch, name) for name, branch in named_branches.items()]
        if not trees:
            raise PatternError("a Fork needs at least one branch, got none: use Op for one input")
        self.branches = tuple(trees)
        self.is_behind_link = False
        self.joins = tuple(_ways_to_join(self.join))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many operands the call may have: one may be the link before."""
        joined = len(self.branches)
        return (joined, joined + 1) if self.is_behind_link else (joined,)

    def behind_link(self) -> "Fork":
        """Returns the fork as it stands in a chain: one operand may be the link before."""
        linked = copy(self)
        linked.is_behind_link = True
        return linked

    def anchors(self) -> tuple[Target, ...] | None:
        return self.join.anchors()

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if not isinstance(value, Node):
            return
        for join in self.joins:
            for after, _ in join.tree.match(value, found):
                if next(not_joined(value, join.listed, join.literals), None) is None:
                    yield from self._match_operands(value, after)

    def _match_operands(self, node: Node, found: Found) -> Iterator[Step]:
        operands = joined_operands(node)
        if len(operands) not in self.counts:
            return
        for order in joining_orders(node, len(operands), len(self.branches)):
            chosen = [operands[position] for position in order]
            rest = tuple(item for i, item in enumerate(operands) if i not in order)
            yield from self._match_branches(chosen, rest, found)

    def _match_branches(
        self, operands: list[Node], rest: tuple[Node, ...], found: Found
    ) -> Iterator[Step]:
        steps: list[Step] = [(found, rest)]
        for tree, operand in zip(self.branches, operands, strict=True):
            steps = [
                (after, open_nodes)
                for before, open_nodes in steps
                for after, _ in tree.match(operand, before)
            ]
        yield from steps


def _ways_to_join(join: Tree) -> Iterator[Join]:
    """Yields the alternatives of a join, each with what it says of other arguments."""
    from embedl_deploy.rewriting.compose import OneOf

    if isinstance(join, OneOf):
        for option in join.trees:
            yield from _ways_to_join(option)
    elif isinstance(join, Named):
        for way in _ways_to_join(join.tree):
            yield replace(way, tree=Named(join.name, way.tree))
    elif isinstance(join, Op):
        yield Join(join, len(join.inputs), frozenset(join.literals))
    else:
        yield Join(join)
