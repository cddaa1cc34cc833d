"""Questions about who reads a tensor, asked by the rules that smooth it."""

from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import LINEARS, LinearLayer
from embedl_deploy.rewriting import Refusal


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


def _calls(node: Node) -> int:
    """Returns how many nodes run the layer that ``node`` runs, fused or bare."""
    layer = _layer(module_of(node))
    if layer is None:
        return 1
    modules = (module_of(other) for other in node.graph.nodes)
    return sum(_layer(module) is layer for module in modules)


def _layer(module: nn.Module | None) -> nn.Module | None:
    return module.linear if isinstance(module, FusedLinear) else module
