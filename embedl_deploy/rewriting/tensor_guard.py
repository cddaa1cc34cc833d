# pyright: reportPrivateUsage=false
# torch keeps the tables of a module private; its own generators take several times as long.
"""Notices when building a replacement changes the model's own layers or parameters."""

from collections.abc import Iterator, Mapping, MutableMapping
from operator import is_
from typing import TypeVar

import torch
from torch import Tensor, nn

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import module_of, parts_of
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.refusal import Refusal

T = TypeVar("T")

_GONE = object()


class TensorGuard:
    """The layers of a match and their parameters, as they are before it is rewritten.

    They are the user's own: the rewritten graph shares them with the model it came from.

    Args:
        match: The match.
        keeps: Whether to keep copies, so that a change can be taken back.
    """

    def __init__(self, match: PatternMatch, *, keeps: bool) -> None:
        self.match = match
        self.layers = [_KeptLayer(path, layer) for path, layer in _layers_of(match)]
        self.tensors = [
            _Kept(f"{kept.path}.{name}", tensor, keeps=keeps)
            for kept in self.layers
            for name, tensor in kept.tensors()
        ]

    def objection(self) -> Refusal | None:
        """Returns a refusal if a layer or a tensor was changed; it is as it was then.

        Raises:
            PatternError: A tensor was changed, and no copy of it was kept.
        """
        rebound = [name for kept in self.layers for name in kept.restore()]
        changed = [kept for kept in self.tensors if kept.is_changed()]
        if not changed and not rebound:
            return None
        names = " and ".join(dict.fromkeys((*rebound, *(kept.name for kept in changed))))
        reason = (
            f"replace() changed {names} in place, which the "
            "user's model shares: make a new module, or a parameter with match.get_attr"
        )
        if any(kept.copy is None for kept in changed):
            raise PatternError(f"{self.match.pattern.name} at %{self.match.root.name}: {reason}")
        for kept in changed:
            kept.restore()
        return Refusal(reason, self.match.root)


class _KeptLayer:
    """A layer, which other calls and the graph that a plan was made for share, and how it was."""

    def __init__(self, path: str, layer: nn.Module) -> None:
        self.path = path
        self.layer = layer
        self.parameters = dict(layer._parameters)
        self.buffers = dict(layer._buffers)
        self.inner = dict(layer._modules)
        self.settings = dict(layer.__dict__)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for table in (self.parameters, self.buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield name, tensor

    def restore(self) -> list[str]:
        """Puts back what was set anew; returns the names of it."""
        layer = self.layer
        names = [
            *_put_back(layer._parameters, self.parameters),
            *_put_back(layer._buffers, self.buffers),
            *_put_back(layer._modules, self.inner),
            *_put_back(layer.__dict__, self.settings),
        ]
        return [f"{self.path}.{name}" for name in names]


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


def _put_back(table: MutableMapping[str, T], before: Mapping[str, T]) -> list[str]:
    """Makes ``table`` hold what it held before; returns the names that differed."""
    if len(table) == len(before) and all(map(is_, table.values(), before.values())):
        return []
    names = dict.fromkeys((*before, *table))
    differing = [name for name in names if table.get(name, _GONE) is not before.get(name, _GONE)]
    table.clear()
    table.update(before)
    return differing


def _layers_of(match: PatternMatch) -> Iterator[tuple[str, nn.Module]]:
    for node in match.nodes:
        module = module_of(node)
        for part in (*parts_of(module), module) if module is not None else ():
            yield from _with_inner(part, str(node.target))


def _with_inner(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _with_inner(child, f"{path}.{name}")
