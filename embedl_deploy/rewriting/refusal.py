"""Why a pattern or an engine left something alone."""

from dataclasses import dataclass

from torch.fx import Node


@dataclass(frozen=True)
class Refusal:
    """A reason to leave a node alone; data for reports, never an error."""

    reason: str
    """What stands in the way, in words the model's author understands."""

    node: Node | None = None
    """The node that the reason speaks of."""

    def __str__(self) -> str:
        return self.reason if self.node is None else f"{self.reason} (at %{self.node.name})"
