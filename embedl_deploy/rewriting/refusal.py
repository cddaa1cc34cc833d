"""Why a pattern or an engine left something alone."""

import re
from dataclasses import dataclass

from torch.fx import Node

from embedl_deploy.errors import PatternError

_FAULT = re.compile(
    r"(match|check|replace|graft)\(\) |the replacement |rolled back|.* replace\(\) returns nothing"
)
"""How refusals begin that the engine had to give because a rule is wrong."""


@dataclass(frozen=True)
class Refusal:
    """A reason to leave a node alone; data for reports, never an error."""

    reason: str
    """What stands in the way, in words the model's author understands."""

    node: Node | None = None
    """The node that the reason speaks of."""

    def __post_init__(self) -> None:
        if isinstance(self.reason, str) and (self.node is None or isinstance(self.node, Node)):  # pyright: ignore[reportUnnecessaryIsInstance]  # the user's
            return
        raise PatternError(
            f"a Refusal takes a reason in words, then a node or nothing, got {self.reason!r} and "
            f"{self.node!r}: write Refusal('why', match.root)"
        )

    def __str__(self) -> str:
        return self.reason if self.node is None else f"{self.reason} (at %{self.node.name})"


def is_fault(reason: str) -> bool:
    """Tells whether a reason speaks of a mistake in a rule rather than of the graph around it."""
    return _FAULT.match(reason) is not None
