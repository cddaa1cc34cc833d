"""What matching has bound so far."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch.fx import Node


class Found(NamedTuple):
    """What matching has bound so far; extending it makes a new one."""

    nodes: tuple[Node, ...] = ()
    """The nodes that the match consumes, in the order they were met."""

    captures: Mapping[str, tuple[Node, ...]] = MappingProxyType({})
    """Named nodes; a run of nodes has more than one."""

    literals: Mapping[str, object] = MappingProxyType({})
    """Named values that are no nodes."""

    def consume(self, node: Node) -> "Found":
        """Returns the state after ``node`` is taken into the match."""
        return Found((*self.nodes, node), self.captures, self.literals)

    def capture(self, name: str, nodes: tuple[Node, ...]) -> "Found | None":
        """Returns the state with a name bound, None where the name already means other nodes."""
        known = self.captures.get(name)
        if known is not None:
            return self if known == nodes else None
        return Found(self.nodes, {**self.captures, name: nodes}, self.literals)

    def capture_literal(self, name: str, value: object) -> "Found | None":
        """Returns the state with a literal bound, None where the name has another value."""
        if name in self.literals:
            return self if self.literals[name] == value else None
        return Found(self.nodes, self.captures, {**self.literals, name: value})


Step = tuple[Found, tuple[Node, ...]]
"""A way to match, and the nodes that the link before it in a chain may be."""
