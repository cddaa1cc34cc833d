# pyright: reportPrivateUsage=false
# torch keeps the tables of a module private; its own generators take several times as long.
"""Notices when building a replacement changes the model's own layers or parameters."""

from collections.abc import Iterator, Mapping, MutableMapping
from operator import is_
from typing import TypeVar

import torch
from torch import Tensor, nn

from embedl_deploy.graph.nodes import module_of, parts_of
from embedl_deploy.rewriting.match import PatternMatch

T = TypeVar("T")

_GONE = object()


class TensorGuard:
    """The layers of a match and their parameters, as they are before it is rewritten.

    They are the user's own: the rewritten graph shares them with the model it came from.
    """

    def __init__(self, match: PatternMatch) -> None:
        self.layers = [_KeptLayer(path, layer) for path, layer in _layers_of(match)]
        self.tensors = [
            _Kept(f"{kept.path}.{name}", tensor)
            for kept in self.layers
            for name, tensor in kept.tensors()
        ]

    def changed(self) -> tuple[str, ...]:
        """Returns what of the layers and tensors was changed; all is as it was then."""
        rebound = [name for kept in self.layers for name in kept.restore()]
        changed = [kept for kept in self.tensors if kept.is_changed()]
        for kept in changed:
            kept.restore()
        return tuple(dict.fromkeys((*rebound, *(kept.name for kept in changed))))


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

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self.tensor = tensor
        self.copy = tensor.detach().clone()

    def is_changed(self) -> bool:
        # Its version would not tell: an edit through `.data` leaves that as it was.
        if torch.equal(self.tensor, self.copy):
            return False
        return not torch.equal(self.tensor.nan_to_num(), self.copy.nan_to_num())

    def restore(self) -> None:
        with torch.no_grad():
            self.tensor.copy_(self.copy)


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
