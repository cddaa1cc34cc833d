"""What a site looks like, apart from the names of its nodes."""

import hashlib

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from embedl_deploy.graph.nodes import module_of, value_of
from embedl_deploy.graph.text import label
from embedl_deploy.graph.values import value_text
from embedl_deploy.rewriting.match import PatternMatch


def site_fingerprint(match: PatternMatch) -> str:
    """Returns 16 hexadecimal digits that depend on the structure of the match alone.

    What each consumed node runs, how they are wired, literals, dtypes and ranks go in; names,
    parameter values, batch sizes and the rest of the graph do not.
    """
    numbers: dict[Node, str] = {}
    for value in match.inputs:
        numbers[value] = f"input{len(numbers)}:{_value(value)}"
    for position, node in enumerate(match.nodes):
        numbers[node] = f"node{position}"
    lines = [f"{_callee(node)} {_arguments(node, numbers)} {_value(node)}" for node in match.nodes]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _callee(node: Node) -> str:
    module = module_of(node)
    return label(node) if module is None else f"{type(module).__name__}({module.extra_repr()})"


def _arguments(node: Node, numbers: dict[Node, str]) -> str:
    def number(read: Node) -> str:
        return numbers.get(read, "?")

    return repr((map_arg(node.args, number), map_arg(node.kwargs, number)))


def _value(node: Node) -> str:
    value = value_of(node)
    if isinstance(value, Tensor):
        return f"{value.dtype}, rank {value.dim()}"
    return value_text(value)
