"""Says why a product that looks like the last one of an attention is none."""

import operator
from collections import deque
from collections.abc import Callable
from math import prod

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import is_call, module_of, shape_of
from embedl_deploy.patterns.recomposition.attention_operands import transposed
from embedl_deploy.patterns.recomposition.attention_steps import takes_scores
from embedl_deploy.patterns.recomposition.attention_walk import (
    CASTS,
    RESHAPES,
    is_product,
    is_softmax,
)
from embedl_deploy.patterns.shapes import same_size
from embedl_deploy.rewriting import Refusal

_ATEN = torch.ops.aten
_MOST_STEPS = 8
_CUTS = (_ATEN.slice.Tensor, _ATEN.narrow.default, _ATEN.cat.default, operator.getitem)
_MOVES = (*CASTS, *RESHAPES, _ATEN.dropout.default, _ATEN.clone.default, _ATEN.contiguous.default)


def near_miss(root: Node) -> Refusal | None:
    """Returns what tells the product ``root`` from an attention's last, None if all does."""
    operands = [node for node in root.args[:2] if isinstance(node, Node)]
    for operand in operands:
        path = _path(operand, is_softmax, is_product)
        refusal = _around_softmax(path) if path else None
        if refusal is not None:
            return refusal
    if len(operands) < 2 or not all(map(_is_no_weight, operands)):
        return None
    for position, operand in enumerate(operands):
        path = _path(operand, is_product, is_softmax)
        if path and all(map(_is_no_weight, path[-1].all_input_nodes[-2:])):
            return _without_softmax(path, position)
    return None


def _around_softmax(path: list[Node]) -> Refusal | None:
    """Returns what stands between a softmax and the products around it."""
    *after, softmax = path
    if not softmax.all_input_nodes:
        return None
    before = _path(softmax.all_input_nodes[0], is_product, is_softmax)
    if not before:
        return None
    blamed = _blamed(after)
    if blamed is not None:
        return Refusal(
            f"%{blamed.name} ({blamed.target}) stands between the softmax and the values", blamed
        )
    # What attention kernels do with scores too is not to blame while something else is there.
    others = [node for node in before[:-1] if not takes_scores(node)]
    blamed = _blamed(others) or _blamed(before[:-1])
    if blamed is not None:
        return Refusal(
            f"%{blamed.name} ({blamed.target}) stands between the scores and the softmax", blamed
        )
    return Refusal("its probabilities are reshaped or transposed before the last product", softmax)


def _blamed(path: list[Node]) -> Node | None:
    return next((node for node in path if not _is_move(node)), None)


def _without_softmax(path: list[Node], position: int) -> Refusal:
    if position == 1:
        return Refusal(
            "it multiplies keys and values first, with no softmax over keys: linear attention",
            path[-1],
        )
    return Refusal("no softmax stands between its two products", path[-1])


def _path(
    start: Node, is_wanted: Callable[[Node], bool], is_end: Callable[[Node], bool]
) -> list[Node]:
    """Returns the nodes from ``start`` to the nearest wanted one, [] if there is none.

    Goes past what keeps the number of elements, and past cuts and joins; so never past a
    projection to another width, a product or a norm with a table of its own.
    """
    paths, seen = deque([[start]]), {start}
    while paths:
        path = paths.popleft()
        node = path[-1]
        if is_wanted(node):
            return path
        if len(path) > _MOST_STEPS or is_end(node) or is_product(node):
            continue
        for source in node.all_input_nodes:
            if source not in seen and _leads(node, source):
                seen.add(source)
                paths.append([*path, source])
    return []


def _leads(node: Node, source: Node) -> bool:
    if any(is_call(node, target) for target in _CUTS):
        return True
    before, after = shape_of(source), shape_of(node)
    if before is None or after is None:
        return False
    return same_size(prod(before), prod(after))


def _is_move(node: Node) -> bool:
    is_known = any(is_call(node, target) for target in _MOVES)
    return is_known or isinstance(module_of(node), nn.Dropout) or transposed(node) is not None


def _is_no_weight(node: Node) -> bool:
    """Tells whether ``node`` holds batches of matrices and is no weight."""
    shape = shape_of(node)
    return node.op != "get_attr" and shape is not None and len(shape) > 2
