"""The state of a match that forgives a few differences."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch.fx import Node

from embedl_deploy.rewriting.difference import Difference
from embedl_deploy.rewriting.found import Found


@dataclass(frozen=True)
class Attempt:
    """What has been matched so far, and what did not fit."""

    found: Found = field(default_factory=Found)
    differences: tuple[Difference, ...] = ()
    budget: int = 1
    """How many differences are forgiven."""

    fitting: tuple[Node, ...] = ()
    """The nodes that fit."""

    def forgive(self, difference: Difference) -> Iterator["Attempt"]:
        """Yields the attempt with one difference more, nothing where that is too many."""
        if len(self.differences) < self.budget:
            yield replace(self, differences=(*self.differences, difference))

    def forgive_all(self, differences: list[Difference]) -> Iterator["Attempt"]:
        """Yields the attempt with all of ``differences``, nothing where these are too many."""
        if len(self.differences) + len(differences) <= self.budget:
            yield replace(self, differences=(*self.differences, *differences))

    def take(self, node: Node, *, fits: bool) -> "Attempt":
        """Returns the attempt after ``node`` is consumed."""
        fitting = (*self.fitting, node) if fits else self.fitting
        return replace(self, found=self.found.consume(node), fitting=fitting)
