"""Questions about who reads a tensor, asked by the rules that smooth it."""

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn
from torch.fx import Graph, Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import LINEARS, LinearLayer
from embedl_deploy.rewriting import Refusal

_COUNTED: ContextVar[tuple[Graph, Mapping[int, int]] | None] = ContextVar("calls", default=None)
"""The graph that stays as it is for now, and how often each of its layers is called."""


def linear_that_reads(reader: Node, value: Node) -> LinearLayer | None:
    """Returns the linear layer that ``reader`` runs on ``value``, ``None`` if it runs none."""
    module = module_of(reader)
    if reader.args[:1] != (value,) or isinstance(module, FusedNormLinear):
        return None
    if isinstance(module, FusedLinear):
        return module.linear
    return module if isinstance(module, LINEARS) else None


def linear_readers(value: Node) -> tuple[Node, ...]:
    """Returns the nodes that run a linear layer on ``value``."""
    return tuple(reader for reader in value.users if linear_that_reads(reader, value) is not None)


def feeds_linears(value: Node) -> bool:
    """Tells whether a linear layer reads ``value``."""
    return bool(linear_readers(value))


def shared_layer(value: Node) -> Refusal | None:
    """Returns a refusal if ``value`` or a linear layer that reads it runs more than once."""
    for node in (value, *linear_readers(value)):
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
    return module.linear if isinstance(module, FusedLinear) else module
