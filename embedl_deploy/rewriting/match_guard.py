# pyright: reportPrivateUsage=false
# torch keeps whether a node was erased private; there is no other door.
"""Notices when a rule's own code changes the graph, the layers or the parameters around a match."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

from torch.fx import Node
from torch.fx.node import Argument, Target

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.tensor_guard import TensorGuard

if TYPE_CHECKING:
    from embedl_deploy.rewriting.pattern import Pattern

_OWN_RULES = "embedl_deploy.patterns."
"""Where the package's own rules live, which are not watched in use: their ``check`` only asks, and
the tests run their ``replace`` under guard."""


class MatchGuard:
    """What a match touches, as it is before ``check`` or ``replace`` of a rule runs.

    Args:
        match: The match.
        step: The method that runs, for messages.
        always: Whether to guard the package's own rules too, as verification does.
    """

    def __init__(self, match: PatternMatch, step: str, *, always: bool = False) -> None:
        self.match = match
        self.step = step
        guarded = always or not is_trusted(match.pattern)
        self.tensors = TensorGuard((*match.nodes, *match.inputs)) if guarded else None
        self.nodes = tuple(map(keep, around(match))) if guarded else ()

    def objection(self) -> Refusal | None:
        """Returns a refusal if anything was changed; it is as it was then.

        Raises:
            PatternError: Nodes were erased, which cannot be taken back.
        """
        gone = [kept.node.name for kept in self.nodes if kept.node._erased]
        if gone:
            raise erased_by_hand(self.match, self.step)
        changed = [kept for kept in self.nodes if kept.is_changed()]
        for kept in changed:
            kept.restore()
        held = self.tensors.changed() if self.tensors is not None else ()
        if held:
            return Refusal(
                f"{self.step}() changed {' and '.join(held)} in place, which the user's model "
                "shares: make a new module, or a parameter with match.get_attr",
                self.match.root,
            )
        if changed:
            names = ", ".join(f"%{kept.node.name}" for kept in changed)
            return Refusal(
                f"{self.step}() changed the graph itself, the arguments or target of {names}: "
                "build with match.call_module, match.call_function and match.get_attr, and return "
                "the node that takes over",
                self.match.root,
            )
        return None


def is_trusted(rule: "Pattern") -> bool:
    """Tells whether a rule is the package's own."""
    return type(rule).__module__.startswith(_OWN_RULES)


def erased_by_hand(match: PatternMatch, step: str) -> PatternError:
    """Returns the error for a rule whose method ``step`` erased nodes."""
    return PatternError(
        f"{match.pattern.name} erased nodes itself in {step}() at %{match.root.name}, past the "
        "engine, which cannot take that back: build with match.call_module, match.call_function "
        "and match.get_attr, return the node, and leave erasing to the engine"
    )


class KeptNode(NamedTuple):
    """A node and what it ran; whatever sets arguments puts a new tuple there."""

    node: Node
    target: Target
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]

    def is_changed(self) -> bool:
        node = self.node
        is_same = _is_same(node.args, self.args) and _is_same(node.kwargs, self.kwargs)
        return not is_same or node.target is not self.target

    def restore(self) -> None:
        self.node.target = self.target
        self.node.args = self.args
        self.node.kwargs = self.kwargs


def _is_same(first: object, second: object) -> bool:
    """Tells whether arguments are the same; those that were put back are copies of theirs."""
    if first is second:
        return True
    if isinstance(first, slice) and isinstance(second, slice):
        ends = ("start", "stop", "step")
        one, other = cast("object", first), cast("object", second)
        return all(_is_same(getattr(one, end), getattr(other, end)) for end in ends)
    if isinstance(first, dict) and isinstance(second, dict):
        some, others = cast("dict[str, object]", first), cast("dict[str, object]", second)
        return list(some) == list(others) and all(_is_same(some[key], others[key]) for key in some)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        items = cast("tuple[object, ...]", first), cast("tuple[object, ...]", second)
        return len(items[0]) == len(items[1]) and all(map(_is_same, *items))
    return False


def keep(node: Node) -> KeptNode:
    """Returns a node with what it runs now."""
    return KeptNode(node, node.target, node.args, node.kwargs)


def around(match: PatternMatch) -> Iterator[Node]:
    """Yields the nodes of a match, those that it reads, and those that read it."""
    readers = (reader for node in match.nodes for reader in node.users)
    yield from dict.fromkeys((*match.nodes, *match.inputs, *readers))
