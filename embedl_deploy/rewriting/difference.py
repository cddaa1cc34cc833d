"""Where a tree and a graph part, as data."""

from dataclasses import dataclass
from typing import Literal

from torch.fx import Node

from embedl_deploy.graph.nodes import source_line

Aspect = Literal[
    "target",
    "literal",
    "argument",
    "condition",
    "dtype",
    "shape",
    "training",
    "link",
    "extra",
    "same value",
    "readers",
    "check",
    "overlap",
    "fault",
    "value",
]
"""What differs: what runs, a literal, an argument, a ``where`` condition or what it asks for
(dtype, shape, training mode), a link that is missing, a node too many, a value that must be one
already met, the readers of a node, what ``check`` says, an earlier rewrite, a mistake in the
rule's own code, the kind of value."""


@dataclass(frozen=True)
class Difference:
    """One thing that keeps a tree from fitting."""

    aspect: Aspect
    """What differs."""

    node: str
    """Name of the node where it does."""

    expected: str
    """What the pattern asks for."""

    found: str
    """What stands there."""

    cure: str
    """The change, to the model or to the pattern, that would make it fit."""

    source: str | None = None
    """``file:line`` of the user's code that made the node, None if tracing did not record it."""

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        return (
            f"%{self.node}{where}: expected {self.expected}, found {self.found}\n"
            f"to match: {self.cure}"
        )


@dataclass(frozen=True)
class NearMiss:
    """A place where a pattern fits but for a few differences."""

    pattern: str
    """Kebab-case name of the pattern."""

    site: str
    """Name of the last node."""

    matched: tuple[str, ...]
    """Names of the nodes that do fit, in graph order."""

    differences: tuple[Difference, ...]
    """What differs, from the last node backwards."""

    source: str | None = None
    """``file:line`` of the last node."""

    @property
    def first(self) -> Difference:
        """The difference that matching, which goes backwards, meets first."""
        return self.differences[0]

    def __str__(self) -> str:
        names = ", ".join(f"%{name}" for name in self.matched)
        fits = f"{names} {'fit' if len(self.matched) > 1 else 'fits'}" if names else "one call off"
        lines = [f"{self.pattern} at %{self.site}: {fits}"]
        for difference in self.differences:
            lines += [f"  {line}" for line in str(difference).splitlines()]
        return "\n".join(lines)


def differ(kind: Aspect, node: Node, expected: str, found: str, cure: str) -> Difference:
    """Returns a difference at ``node``, with the node's source line."""
    return Difference(kind, node.name, expected, found, cure, source_line(node))


def fault(pattern: str, reason: str) -> tuple[str, str, str]:
    """Returns what is expected, found and to be done where a rule itself is wrong."""
    if reason.startswith(("match() ", "check() ")):
        return f"check() of {pattern} to answer", reason, f"correct match() or check() of {pattern}"
    made = "graft" if "graft" in reason else "replace()"
    cure = f"correct {made} of {pattern}, or let check() decline what it cannot take"
    return f"{made} of {pattern} to build what takes the place of the match", reason, cure
