"""What is the same for all keys of a query: factors, and maxima subtracted by hand."""

import operator

import torch
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import is_call, shape_of
from embedl_deploy.patterns.recomposition.attention_walk import Walk
from embedl_deploy.patterns.shapes import is_one

_ATEN = torch.ops.aten
_MAXIMA = (_ATEN.amax.default, _ATEN.max.dim)
_RELAYS = (_ATEN.unsqueeze.default, _ATEN.detach.default, _ATEN.expand.default)
_MOST_STEPS = 5


def is_constant_in_rows(value: Argument, scores: Node) -> bool:
    """Tells whether ``value`` is the same for all keys of a query."""
    shape = shape_of(value) if isinstance(value, Node) else None
    full = shape_of(scores)
    if shape is None or full is None or len(shape) > len(full):
        return False
    return all(is_one(size) for size in shape[-1:])


def past_maximum(shift: Node, scores: Node, reader: Node, walk: Walk) -> Walk | None:
    """Returns the walk past ``scores - max(scores)``, None where something else is subtracted.

    A softmax does not change where all keys of a query are shifted alike; CogView and its
    followers subtract the maximum by hand to keep half precision finite.
    """
    if not is_constant_in_rows(shift, reader):
        return None
    chain, node = walk.past(reader), shift
    for _ in range(_MOST_STEPS):
        is_step = any(is_call(node, target) for target in (*_MAXIMA, *_RELAYS))
        if not (is_step or _is_first(node)) or not set(node.users) <= set(chain.nodes):
            return None
        is_maximum = any(is_call(node, target) for target in _MAXIMA)
        chain, node = chain.past(node), node.all_input_nodes[0]
        if is_maximum:
            return chain if node is scores else None
    return None


def _is_first(node: Node) -> bool:
    return is_call(node, operator.getitem) and node.args[1:] == (0,)
