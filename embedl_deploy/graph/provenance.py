"""Which rule made a node, from which nodes, from which line of the user's model."""

from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of, source_line
from embedl_deploy.graph.text import label, module_label

_KEY = "rewrites"
_MADE_AS = "made_as"


class Origin(NamedTuple):
    """A node as it was when a rewrite consumed it."""

    name: str
    """Name of the node."""

    runs: nn.Module | str
    """The module that it ran, or the text that stands for what it ran."""

    target: str
    """Path of the module, "" where it ran none."""

    source: str | None
    """``file:line`` of the user's code that made it, None if tracing did not record it."""

    @property
    def label(self) -> str:
        """What it ran; written when asked for, since most are never shown."""
        if isinstance(self.runs, str):
            return self.runs
        return module_label(self.runs, self.target)


class Rewrite(NamedTuple):
    """One application of a pattern."""

    pattern: str
    """Kebab-case name of the pattern."""

    stage: str
    """The stage in which it ran."""

    consumed: tuple[Origin, ...]
    """What it replaced, in graph order."""


@dataclass(frozen=True)
class Blame:
    """The history of one node; ``str()`` of it is what a person wants to read."""

    node: str
    """Name of the node."""

    label: str
    """What it runs."""

    source: str | None
    """``file:line`` of the user's code that it stands for."""

    rewrites: tuple[Rewrite, ...]
    """The rewrites that led to it, oldest first; () for a node that tracing made."""

    def __str__(self) -> str:
        lines = [f"%{self.node} = {self.label}"]
        if not self.rewrites:
            lines.append(f"  traced from {self.source or 'an unknown line'}")
        for rewrite in reversed(self.rewrites):
            lines.append(f"  made by {rewrite.pattern} ({rewrite.stage}) from")
            lines += [
                f"    %{origin.name} = {origin.label}"
                + (f"   # {origin.source}" if origin.source else "")
                for origin in rewrite.consumed
            ]
        return "\n".join(lines)


def blame(node: Node) -> Blame:
    """Returns which rule made ``node``, from which nodes, from which line of the user's model.

    Raises:
        ValueError: It is no node of a graph.
    """
    given = cast("object", node)
    if not isinstance(given, Node):
        raise ValueError(
            f"blame takes a node, got {type(given).__name__}: write blame(next(node for node in "
            "model.graph.nodes if node.name == 'relu'))"
        )
    return Blame(node.name, label(node), source_line(node), rewrites_of(node))


def rewrites_of(node: Node) -> tuple[Rewrite, ...]:
    """Returns the rewrites recorded on ``node``, oldest first."""
    return tuple(node.meta.get(_KEY, ()))


def origin_of(node: Node) -> Origin:
    """Returns a node's name, label and source line, to outlive the node."""
    module = module_of(node)
    if module is None:
        return Origin(node.name, label(node), "", source_line(node))
    return Origin(node.name, module, str(node.target), source_line(node))


def record_rewrite(made: Node, rewrite: Rewrite, consumed: tuple[Node, ...]) -> None:
    """Notes on a new node the rewrite that made it, after those of the nodes it replaces."""
    before = (past for node in consumed for past in rewrites_of(node))
    made.meta[_KEY] = (*dict.fromkeys(before), rewrite)


def stable_name(node: Node) -> str:
    """Returns a name that does not depend on which other rewrites ran.

    Nodes that tracing made keep their own; one that a rewrite made is named after the node whose
    place it took, since counters in its own name move when another rewrite is vetoed.
    """
    made_as = node.meta.get(_MADE_AS)
    return made_as if isinstance(made_as, str) else node.name


def name_made(made: Node, name: str) -> None:
    """Sets the stable name of a new node."""
    made.meta[_MADE_AS] = name
