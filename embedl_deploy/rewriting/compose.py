"""Trees made of trees: chains, forks, options, alternatives and runs."""

import re
from collections.abc import Callable, Iterator
from copy import copy
from typing import cast

from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import Target, callee_of, is_call, runs
from embedl_deploy.rewriting.fork import Fork
from embedl_deploy.rewriting.found import Found, Step
from embedl_deploy.rewriting.listed import ListOf
from embedl_deploy.rewriting.targets import checked_target, require_condition
from embedl_deploy.rewriting.tree import Named, Op, Spec, Tree, as_tree


class Chain(Tree):
    """Links that each read the one before; the root is the last link that is present.

    Keywords name the links: ``Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d, act=Maybe(nn.ReLU))``.
    """

    def __init__(self, *links: Spec, **named_links: Spec) -> None:
        trees = [as_tree(link) for link in links]
        trees += [named(name, link) for name, link in named_links.items()]
        if not trees:
            raise PatternError("a Chain needs at least one link, got none: it could never match")
        self.links = (trees[0], *(_behind_link(tree) for tree in trees[1:]))
        self._is_optional = tuple(may_be_absent(tree) for tree in trees)
        self._before_last = _anchors_before_last(self.links)
        self._may_stand_there: dict[object, bool] = {}

    def anchors(self) -> tuple[Target, ...] | None:
        targets: list[Target] = []
        for link in reversed(self.links):
            anchors = link.anchors()
            if anchors is None:
                return None
            targets += anchors
            if not may_be_absent(link):
                break
        return tuple(targets)

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        if self._before_last is None or not isinstance(value, Node) or self._may_end_at(value):
            yield from self._match_up_to(len(self.links) - 1, (value,), found)

    def _may_end_at(self, node: Node) -> bool:
        """Tells whether ``node`` reads what the link before the last may be."""
        return any(self._may_precede(callee_of(read)) for read in node.all_input_nodes)

    def _may_precede(self, callee: object) -> bool:
        known = self._may_stand_there.get(callee)
        if known is None:
            known = any(runs(callee, anchor) for anchor in self._before_last or ())
            self._may_stand_there[callee] = known
        return known

    def _match_up_to(self, last: int, values: tuple[Argument, ...], found: Found) -> Iterator[Step]:
        """Yields the ways in which one of ``values`` ends the links up to ``last``."""
        if last < 0:
            yield found, tuple(value for value in values if isinstance(value, Node))
            return
        link = self.links[last]
        for value in values:
            for after, open_nodes in link.match(value, found):
                yield from self._match_up_to(last - 1, open_nodes, after)
        if self._is_optional[last]:
            yield from self._match_up_to(last - 1, values, found)


class Maybe(Tree):
    """A link that may be missing from a chain; present where it can be."""

    def __init__(self, tree: Spec) -> None:
        self.tree = as_tree(tree)

    def anchors(self) -> tuple[Target, ...] | None:
        return self.tree.anchors()

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        yield from self.tree.match(value, found)


class OneOf(Tree):
    """The first of several trees that fits."""

    def __init__(self, *trees: Spec) -> None:
        if not trees:
            raise PatternError("OneOf needs at least one tree, got none: it could never match")
        self.trees = tuple(as_tree(tree) for tree in trees)
        self._fitting: dict[object, tuple[Tree, ...]] = {}

    def anchors(self) -> tuple[Target, ...] | None:
        targets: list[Target] = []
        for tree in self.trees:
            anchors = tree.anchors()
            if anchors is None:
                return None
            targets += anchors
        return tuple(targets)

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        for tree in self._fitting_for(value) if isinstance(value, Node) else self.trees:
            if type(tree) is Op and isinstance(value, Node):
                yield from tree.match_called(value, found)
            else:
                yield from tree.match(value, found)

    def _fitting_for(self, node: Node) -> tuple[Tree, ...]:
        """Returns the trees whose root may run what ``node`` runs, looked up by what that is."""
        callee = callee_of(node)
        fitting = self._fitting.get(callee)
        if fitting is None:
            fitting = tuple(tree for tree in self.trees if _may_start_at(tree, callee))
            self._fitting[callee] = fitting
        return fitting


class Wildcard(Tree):
    """A run of nodes, each reading the one before and each passing ``check``.

    Args:
        check: A target, a tuple of targets, or a condition on the node made with ``where``.
            None admits any call.
        quantifier: How many: ``"?"``, ``"*"``, ``"+"``, ``"{3}"`` or ``"{1,4}"``. Longest first.
        where: A further condition on each node.
    """

    def __init__(
        self,
        check: Target | tuple[Target, ...] | None = None,
        quantifier: str = "*",
        where: Callable[[Node], bool] | None = None,
    ) -> None:
        self.targets: tuple[Target, ...] | None = None
        if check is not None:
            listed = cast("tuple[object, ...]", check if isinstance(check, tuple) else (check,))
            self.targets = tuple(checked_target(item) for item in listed)
        require_condition("Wildcard", where)
        self.where = where
        self.least, self.most = _bounds(quantifier)

    def anchors(self) -> tuple[Target, ...] | None:
        return self.targets

    def admits(self, node: Node) -> bool:
        """Tells whether ``node`` may stand in the run."""
        if node.op not in ("call_function", "call_module"):
            return False
        if self.targets is not None and not any(is_call(node, item) for item in self.targets):
            return False
        return self.where is None or self.where(node)

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        for run in self.runs(value, found):
            after = found
            for node in run:
                after = after.consume(node)
            yield after, _first_operand(run[-1])

    def runs(self, value: Argument, found: Found) -> Iterator[tuple[Node, ...]]:
        """Yields the runs of at least one node that end in ``value``, longest first."""
        run: list[Node] = []
        node = value
        while isinstance(node, Node) and self.admits(node) and len(run) < self.most:
            if node in found.nodes:
                break
            run.append(node)
            before = _first_operand(node)
            node = before[0] if before else None
        for length in range(len(run), max(self.least, 1) - 1, -1):
            yield tuple(run[:length])


class NamedRun(Tree):
    """A wildcard whose nodes are captured under one name, in graph order."""

    def __init__(self, name: str, wildcard: Wildcard) -> None:
        self.name = name
        self.wildcard = wildcard

    def anchors(self) -> tuple[Target, ...] | None:
        return self.wildcard.anchors()

    def name_of(self) -> str | None:
        return self.name

    def match(self, value: Argument, found: Found) -> Iterator[Step]:
        for run in self.wildcard.runs(value, found):
            after: Found | None = found
            for node in run:
                after = after.consume(node)
            after = after.capture(self.name, tuple(reversed(run)))
            if after is not None:
                yield after, _first_operand(run[-1])


def _may_start_at(tree: Tree, callee: object) -> bool:
    anchors = tree.anchors()
    return anchors is None or any(runs(callee, anchor) for anchor in anchors)


def named(name: str, spec: Spec) -> Tree:
    """Returns ``spec`` with its root, or its run of nodes, captured under ``name``."""
    if isinstance(spec, Wildcard):
        return NamedRun(name, spec)
    if isinstance(spec, Maybe):
        return Maybe(named(name, spec.tree))
    return Named(name, spec)


def may_be_absent(tree: Tree) -> bool:
    """Tells whether a chain may go without the link ``tree``."""
    if isinstance(tree, NamedRun):
        return tree.wildcard.least == 0
    if isinstance(tree, Wildcard):
        return tree.least == 0
    return isinstance(tree, Maybe)


def _behind_link(tree: Tree) -> Tree:
    """Returns ``tree`` with the forks in it told that there is a link before them."""
    if isinstance(tree, Fork):
        return tree.behind_link()
    if isinstance(tree, (Named, Maybe)):
        return _with(tree, "tree", _behind_link(tree.tree))
    if isinstance(tree, OneOf):
        return OneOf(*map(_behind_link, tree.trees))
    if isinstance(tree, ListOf):
        return _with(tree, "trees", tuple(map(_behind_link, tree.trees)))
    if isinstance(tree, Op):
        return _with(tree, "inputs", tuple(map(_behind_link, tree.inputs)))
    if isinstance(tree, Chain):
        return _with(tree, "links", (_behind_link(tree.links[0]), *tree.links[1:]))
    return tree


def _with(tree: Tree, attribute: str, value: object) -> Tree:
    """Returns ``tree`` with another value of an attribute, itself where it has that value."""
    if getattr(tree, attribute) == value:
        return tree
    changed = copy(tree)
    setattr(changed, attribute, value)
    return changed


def _anchors_before_last(links: tuple[Tree, ...]) -> tuple[Target, ...] | None:
    """Returns what the last link of a chain must read one of, None where that is not known."""
    *earlier, last = links
    if may_be_absent(last) or not _opens_own_inputs(last):
        return None
    targets: list[Target] = []
    for link in reversed(earlier):
        anchors = link.anchors()
        if anchors is None:
            return None
        targets += anchors
        if not may_be_absent(link):
            return tuple(targets)
    return None


def _opens_own_inputs(tree: Tree) -> bool:
    """Tells whether the link before ``tree`` in a chain is always read by its root itself."""
    if isinstance(tree, Named):
        return _opens_own_inputs(tree.tree)
    if isinstance(tree, OneOf):
        return all(_opens_own_inputs(item) for item in tree.trees)
    if isinstance(tree, Fork):
        return _opens_own_inputs(tree.join)
    return type(tree) is Op and not tree.inputs


def _first_operand(node: Node) -> tuple[Node, ...]:
    first = node.args[0] if node.args else None
    return (first,) if isinstance(first, Node) else ()


def _bounds(quantifier: str) -> tuple[int, int]:
    unlimited = 1_000_000
    known = {"?": (0, 1), "*": (0, unlimited), "+": (1, unlimited)}
    if quantifier in known:
        return known[quantifier]
    found = re.fullmatch(r"\{(\d+)(?:(,)(\d*))?\}", quantifier)
    if found is None:
        raise PatternError(
            'a quantifier is "?", "*", "+", "{n}", "{n,}" or "{m,n}", got ' + repr(quantifier)
        )
    least = int(found[1])
    most = least if found[2] is None else int(found[3] or unlimited)
    if most < max(least, 1):
        raise PatternError(f"the quantifier {quantifier!r} admits no run: it could never match")
    return least, most
