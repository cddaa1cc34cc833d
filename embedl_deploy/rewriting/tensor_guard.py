# pyright: reportPrivateUsage=false
# torch keeps the tables of a module private; its own generators take several times as long.
"""Notices when a rule's own code changes the model's own layers or parameters."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from operator import is_
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._C import _autograd
from torch.fx import Node

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import graph_module_of, module_of, parts_of

T = TypeVar("T")

_GONE = object()

_SAMPLED = 4
"""How many elements per dimension are kept of a tensor that is not copied whole."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TensorGuard:
    """The layers that nodes call and the tensors in reach, as they are before a rule's code runs.

    They are the user's own: the rewritten graph shares them with the model it came from.

    Args:
        nodes: The nodes that call the layers, and those that read parameters.
        whole: Whether to copy each tensor, so that a change can be taken back. Else a change is
            seen by the tensor's version and by a few of its elements.
    """

    def __init__(self, nodes: Iterable[Node], *, whole: bool = True) -> None:
        layers, tensors = _in_reach(nodes)
        self.layers = [_KeptLayer(path, layer) for path, layer in layers]
        self.tensors = [_Kept(name, tensor, whole=whole) for name, tensor in tensors]
        self.lost: tuple[str, ...] = ()
        """What was changed and could not be put back."""

    def changed(self) -> tuple[str, ...]:
        """Returns what of the layers and tensors was changed; what can be is as it was then."""
        rebound = [name for kept in self.layers for name in kept.restore()]
        changed = [kept for kept in self.tensors if kept.is_changed()]
        self.lost = tuple(kept.name for kept in changed if not kept.restore())
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

    def __init__(self, name: str, tensor: Tensor, *, whole: bool) -> None:
        self.name = name
        self.tensor = tensor
        self.whole = whole
        self.version = _version(tensor)
        self.copy = self._part().clone()

    def is_changed(self) -> bool:
        # Its version alone would not tell: an edit through `.data` leaves that as it was.
        if not self.whole and _version(self.tensor) != self.version:
            return True
        return not same_bits(self._part(), self.copy)

    def restore(self) -> bool:
        """Puts the values back; tells whether it could."""
        if self.whole:
            with torch.no_grad():
                self.tensor.copy_(self.copy)
            if not self.tensor.is_inference():
                _autograd._unsafe_set_version_counter((self.tensor,), (self.version,))
        return self.whole

    def _part(self) -> Tensor:
        tensor = self.tensor.detach()
        if self.whole or tensor.layout is not torch.strided:
            return tensor
        return tensor[tuple(slice(None, None, max(1, size // _SAMPLED)) for size in tensor.shape)]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Tells whether two tensors of one kind hold the same bits; NaN is as good as any."""
    if first.is_meta or first.layout is not torch.strided:
        return True
    bits = _BITS.get(first.element_size())
    if bits is None or first.is_quantized:
        return torch.equal(first, second)
    return first.shape == second.shape and torch.equal(first.view(bits), second.view(bits))


def _put_back(table: MutableMapping[str, T], before: Mapping[str, T]) -> list[str]:
    """Makes ``table`` hold what it held before; returns the names that differed."""
    if len(table) == len(before) and all(map(is_, table.values(), before.values())):
        return []
    names = dict.fromkeys((*before, *table))
    differing = [name for name in names if table.get(name, _GONE) is not before.get(name, _GONE)]
    table.clear()
    table.update(before)
    return differing


def _in_reach(
    nodes: Iterable[Node],
) -> tuple[list[tuple[str, nn.Module]], list[tuple[str, Tensor]]]:
    """Returns the layers that nodes call and the tensors of these or read by them, each once."""
    layers: dict[int, tuple[str, nn.Module]] = {}
    tensors: dict[int, tuple[str, Tensor]] = {}
    for node in nodes:
        for path, layer in _layers_of(node):
            layers.setdefault(id(layer), (path, layer))
        held = _attribute(node)
        if held is not None:
            tensors.setdefault(id(held), (str(node.target), held))
    for path, layer in layers.values():
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                tensors.setdefault(id(tensor), (f"{path}.{name}", tensor))
    return list(layers.values()), list(tensors.values())


def _attribute(node: Node) -> Tensor | None:
    if node.op != "get_attr":
        return None
    held = attribute_of(graph_module_of(node), str(node.target))
    return held if isinstance(held, Tensor) else None


def _layers_of(node: Node) -> Iterator[tuple[str, nn.Module]]:
    module = module_of(node)
    for part in (*parts_of(module), module) if module is not None else ():
        yield from _with_inner(part, str(node.target))


def _with_inner(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _with_inner(child, f"{path}.{name}")
