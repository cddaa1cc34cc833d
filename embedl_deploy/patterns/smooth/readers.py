"""Questions about who reads a tensor, asked by the rules that smooth it."""

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn
from torch.fx import Graph, Node

from embedl_deploy.graph.nodes import module_of, shape_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_conv import FusedConv
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import LINEARS, PLAIN_CONVOLUTIONS, LinearLayer, PlainConvolution
from embedl_deploy.patterns.smooth.steps import axis_after
from embedl_deploy.rewriting import Refusal

SmoothedLayer = LinearLayer | PlainConvolution

_COUNTED: ContextVar[tuple[Graph, Mapping[int, int]] | None] = ContextVar("calls", default=None)
"""The graph that stays as it is for now, and how often each of its layers is called."""


def layer_of(reader: Node) -> SmoothedLayer | None:
    """Returns the layer that ``reader`` runs on its first input, None if it runs none.

    A linear layer, or a convolution each of whose outputs reads all channels.
    """
    module = module_of(reader)
    if isinstance(module, FusedNormLinear) or not reader.args:
        return None
    layer = module.weighted if isinstance(module, WeightedFused) else module
    if isinstance(layer, PLAIN_CONVOLUTIONS):
        return layer if layer.groups == 1 else None
    return layer if isinstance(layer, LINEARS) else None


def layer_readers(value: Node) -> tuple[Node, ...]:
    """Returns the nodes that run a layer on ``value``, however its channels get there."""
    found = (_behind(user, value, _last_axis(value)) for user in value.users)
    return tuple(dict.fromkeys(reader for readers in found for reader in readers))


def ways_to_layers(value: Node) -> tuple[Node, ...]:
    """Returns the users of ``value`` that are layers, or through which only layers read."""
    return tuple(user for user in value.users if _behind(user, value, _last_axis(value)))


def _behind(user: Node, value: Node, axis: int) -> tuple[Node, ...]:
    """Returns the layers that read ``value`` by way of ``user``; none if others do too."""
    if user.args[:1] != (value,) or user.all_input_nodes.count(value) != 1:
        return ()
    layer = layer_of(user)
    if layer is not None:
        spatial = layer.weight.dim() - 2
        return (user,) if axis == _last_axis(value) - spatial else ()
    moved = axis_after(user, axis)
    if moved is None:
        return ()
    behind = [_behind(reader, user, moved) for reader in user.users]
    return tuple(reader for readers in behind for reader in readers) if all(behind) else ()


def _last_axis(value: Node) -> int:
    return len(shape_of(value) or ()) - 1


def feeds_layers(value: Node) -> bool:
    """Tells whether a layer that can be smoothed reads ``value``."""
    return bool(layer_readers(value))


def shared_layer(value: Node) -> Refusal | None:
    """Returns a refusal if ``value`` or a layer that reads it runs more than once."""
    for node in (value, *layer_readers(value)):
        if _calls(node) > 1:
            return Refusal(f"%{node.name} runs a layer that is called more than once", node)
    return None


@contextmanager
def counting_once(graph: Graph) -> Generator[None]:
    """Counts the calls of layers once for all questions about ``graph``, which must not change."""
    token = _COUNTED.set((graph, _count(graph)))
    try:
        yield
    finally:
        _COUNTED.reset(token)


def _calls(node: Node) -> int:
    """Returns how many nodes run the layer that ``node`` runs, fused or bare."""
    layer = _layer(module_of(node))
    if layer is None:
        return 1
    counted = _COUNTED.get()
    if counted is not None and counted[0] is node.graph:
        return counted[1][id(layer)]
    return _count(node.graph)[id(layer)]


def _count(graph: Graph) -> Mapping[int, int]:
    return Counter(id(_layer(module_of(node))) for node in graph.nodes)


def _layer(module: nn.Module | None) -> nn.Module | None:
    return module.weighted if isinstance(module, (FusedLinear, FusedConv)) else module
