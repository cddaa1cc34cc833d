"""Numbers that a graph holds as literals, as filled tensors or as constants."""

import math

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, graph_module_of, is_call
from embedl_deploy.rewriting import Literal

_ATEN = torch.ops.aten


def about(name: str, number: float) -> Literal:
    """Returns a literal of a tree that has the value of ``number`` to five digits."""

    def is_close(found: object) -> bool:
        return isinstance(found, (int, float)) and math.isclose(found, number, rel_tol=1e-5)

    return Literal(name, where=is_close)


def number_of(value: Argument) -> float | None:
    """Returns the one number that ``value`` is in every run, None if there is no such number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Node):
        return None
    if value.op == "get_attr":
        return _constant(value)
    if is_call(value, _ATEN.full.default):
        return _filled(value, "size", "fill_value")
    if is_call(value, _ATEN.scalar_tensor.default):
        return _filled(value, None, "s")
    return None


def _filled(node: Node, size: str | None, name: str) -> float | None:
    bound = bound_arguments(node)
    if size is not None and bound[size]:
        return None
    number = bound[name]
    return None if isinstance(number, Node) else number_of(number)


def _constant(node: Node) -> float | None:
    """Returns the value of a constant of one element; parameters and trained buffers are none."""
    owner: object = graph_module_of(node)
    for name in str(node.target).split("."):
        owner = getattr(owner, name, None)
    if not isinstance(owner, Tensor) or isinstance(owner, nn.Parameter) or owner.dim() != 0:
        return None
    return float(owner.item())
