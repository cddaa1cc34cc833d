# pyright: reportPrivateUsage=false
# torch keeps the tables of a module private; its own generators take several times as long.
"""Notices when building a replacement changes the model's own parameters."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import module_of, parts_of
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal


class TensorGuard:
    """The parameters and buffers of a match, as they are before it is rewritten.

    They are the user's own: the rewritten graph shares them with the model it came from.

    Args:
        match: The match.
        keeps: Whether to keep copies, so that a change can be taken back.
    """

    def __init__(self, match: PatternMatch, *, keeps: bool) -> None:
        self.match = match
        self.tensors = [_Kept(name, tensor, keeps=keeps) for name, tensor in _tensors_of(match)]

    def objection(self) -> Refusal | None:
        """Returns a refusal if a tensor was changed; it is as it was then.

        Raises:
            PatternError: One was changed, and no copy of it was kept.
        """
        changed = [kept for kept in self.tensors if kept.is_changed()]
        if not changed:
            return None
        reason = (
            f"replace() changed {' and '.join(kept.name for kept in changed)} in place, which the "
            "user's model shares: make a new module, or a parameter with match.get_attr"
        )
        if any(kept.copy is None for kept in changed):
            raise PatternError(f"{self.match.pattern.name} at %{self.match.root.name}: {reason}")
        for kept in changed:
            kept.restore()
        return Refusal(reason, self.match.root)


class _Kept:
    """A tensor and how it was."""

    def __init__(self, name: str, tensor: Tensor, *, keeps: bool) -> None:
        self.name = name
        self.tensor = tensor
        self.version = self._version_now()
        self.copy = tensor.detach().clone() if keeps else None

    def is_changed(self) -> bool:
        if self.copy is None:
            return self._version_now() != self.version
        # An edit through `.data` leaves the version as it was.
        return not torch.equal(self.tensor.nan_to_num(), self.copy.nan_to_num())

    def restore(self) -> None:
        if self.copy is not None:
            with torch.no_grad():
                self.tensor.copy_(self.copy)

    def _version_now(self) -> int:
        return 0 if self.tensor.is_inference() else self.tensor._version


def _tensors_of(match: PatternMatch) -> Iterator[tuple[str, Tensor]]:
    for node in match.nodes:
        module = module_of(node)
        for part in (*parts_of(module), module) if module is not None else ():
            yield from _own_tensors(part, str(node.target))


def _own_tensors(module: nn.Module, path: str) -> Iterator[tuple[str, Tensor]]:
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None:
                yield f"{path}.{name}", tensor
    for name, child in module._modules.items():
        if child is not None:
            yield from _own_tensors(child, f"{path}.{name}")
