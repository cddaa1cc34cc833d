"""Walks from the input of an attention's softmax to the product of queries and keys."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, is_call, shape_of
from embedl_deploy.patterns.literals import number_of
from embedl_deploy.patterns.recomposition.attention_rows import is_constant_in_rows, past_maximum
from embedl_deploy.patterns.recomposition.attention_walk import (
    CASTS,
    MOST_STEPS,
    RESHAPES,
    Mask,
    Walk,
    is_product,
)
from embedl_deploy.patterns.shapes import same_shape
from embedl_deploy.rewriting import Refusal

_ATEN = torch.ops.aten
_LOWEST_KEPT = -1e9
_LOWEST_BOUND = -1e30

Arrival = tuple[Node, Walk] | Refusal | None
"""The first product and the walk to it, why there is none, or that nothing of the kind is there."""


def walk_to_product(node: Node, walk: Walk) -> Arrival:
    """Walks from the softmax's input to the product of queries and keys."""
    if walk.steps > MOST_STEPS:
        return None
    if is_product(node):
        if is_call(node, _ATEN.baddbmm.default):
            walk = _with_added_bias(node, walk)
        return node, walk.past(node)
    step = _STEPS.get(node.target)
    if step is None:
        return _blocked_by(node)
    return step(node, walk)


def takes_scores(node: Node) -> bool:
    """Tells whether the walk knows what ``node`` may do to scores."""
    return node.target in _STEPS


def _blocked_by(node: Node) -> Refusal | None:
    """Returns a refusal where an unknown operation stands right on top of a product."""
    first = node.all_input_nodes[:1]
    if node.op in ("call_function", "call_module") and first and is_product(first[0]):
        return Refusal(
            f"%{node.name} ({node.target}) stands between the scores and the softmax", node
        )
    return None


def _with_added_bias(product: Node, walk: Walk) -> Walk:
    bound = bound_arguments(product)
    beta, bias = number_of(bound["beta"]), bound["self"]
    if beta == 0.0 or not isinstance(bias, Node):
        return walk
    factor = walk.factor * (1.0 if beta is None else beta)
    return replace(walk, masks=(*walk.masks, Mask(bias, product, factor)))


Step = Callable[[Node, Walk], Arrival]


def _pass_through(node: Node, walk: Walk) -> Arrival:
    return walk_to_product(node.all_input_nodes[0], walk.past(node))


def _scale(node: Node, walk: Walk) -> Arrival:
    """Goes past a multiplication or division by a number, or by a factor of whole rows."""
    divides = is_call(node, _ATEN.div.Tensor)
    if divides and not isinstance(node.args[0], Node):
        return None
    for position in (0,) if divides else (0, 1):
        scores, other = node.args[position], node.args[1 - position]
        number = number_of(other)
        if not isinstance(scores, Node) or number == 0.0:
            continue
        after = walk.past(node)
        if number is not None:
            after = replace(after, factor=after.factor * (1 / number if divides else number))
        elif walk.query_scale is not None or not _scales_rows(other, node, walk):
            continue
        else:
            assert isinstance(other, Node)
            after = replace(after, query_scale=other, query_is_divided=divides)
        found = walk_to_product(scores, after)
        if found is not None:
            return _of_whole_rows(found, node, walk, after)
    return _multiplied(node, walk)


def _scales_rows(factor: Argument, node: Node, walk: Walk) -> bool:
    return not walk.is_split(node) and is_constant_in_rows(factor, node)


def _multiplied(node: Node, walk: Walk) -> Refusal | None:
    """Returns why scores multiplied by a tensor, element by element, are no plain attention."""
    for position in (0, 1):
        scores, other = node.args[position], node.args[1 - position]
        if not isinstance(scores, Node) or not isinstance(other, Node):
            return None
        if isinstance(walk_to_product(scores, walk.past(node)), tuple):
            verb = "divided" if is_call(node, _ATEN.div.Tensor) else "multiplied"
            return Refusal(f"its scores are {verb} by %{other.name}, key by key", node)
    return None


def _of_whole_rows(
    found: tuple[Node, Walk] | Refusal, node: Node, walk: Walk, after: Walk
) -> Arrival:
    """Returns ``found`` unless a factor of the graph would scale something else than queries."""
    if isinstance(found, Refusal) or after.query_scale is walk.query_scale:
        return found
    if len(found[1].masks) != len(walk.masks):
        return Refusal("its mask is scaled by a tensor together with the scores", node)
    here, there = shape_of(node), shape_of(found[0])
    if here is None or there is None or not same_shape(here, there):
        return Refusal("its scores are regrouped before a tensor scales them", node)
    return found


def _add(node: Node, walk: Walk) -> Arrival:
    if bound_arguments(node)["alpha"] != 1:
        return None
    refusal: Refusal | None = None
    for position in (0, 1):
        scores, mask = node.args[position], node.args[1 - position]
        if not isinstance(scores, Node) or not isinstance(mask, Node):
            return None
        after = walk.past(node)
        after = replace(after, masks=(*after.masks, Mask(mask, node, walk.factor)))
        found = walk_to_product(scores, after)
        if isinstance(found, tuple):
            return found
        refusal = refusal or found
    return refusal


def _subtract(node: Node, walk: Walk) -> Arrival:
    scores, mask = node.args[0], node.args[1]
    if bound_arguments(node)["alpha"] != 1:
        return None
    if not isinstance(scores, Node) or not isinstance(mask, Node):
        return None
    after = None if walk.is_split(node) else past_maximum(mask, scores, node, walk)
    if after is None:
        taken = Mask(mask, node, -walk.factor)
        after = replace(walk.past(node), masks=(*walk.masks, taken))
    return walk_to_product(scores, after)


def _bound_below(node: Node, walk: Walk) -> Arrival:
    """Goes past a lower bound that only minus infinity lies under."""
    bound = bound_arguments(node)
    if bound.get("max") is not None:
        return None
    scores, limit = bound["self"], number_of(bound["min"] if "min" in bound else bound["other"])
    if not isinstance(scores, Node) or limit is None or limit > _LOWEST_BOUND:
        return None
    return walk_to_product(scores, walk.past(node))


def _masked_fill(node: Node, walk: Walk) -> Arrival:
    bound = bound_arguments(node)
    return _fill(node, walk, bound["self"], bound["mask"], bound["value"], is_kept=False)


def _where(node: Node, walk: Walk) -> Arrival:
    bound = bound_arguments(node)
    condition, first, second = bound["condition"], bound["self"], bound["other"]
    if number_of(first) is not None:
        return _fill(node, walk, second, condition, first, is_kept=False)
    return _fill(node, walk, first, condition, second, is_kept=True)


def _fill(
    node: Node,
    walk: Walk,
    scores: Argument,
    condition: Argument,
    value: Argument,
    *,
    is_kept: bool,
) -> Arrival:
    number = number_of(value)
    if not isinstance(scores, Node) or not isinstance(condition, Node) or number is None:
        return None
    mask = Mask(condition, node, walk.factor, number, is_kept)
    found = walk_to_product(scores, replace(walk.past(node), masks=(*walk.masks, mask)))
    if isinstance(found, tuple) and (number > _LOWEST_KEPT or walk.factor <= 0.0):
        return Refusal(f"its mask puts {number} in place of scores, not minus infinity", node)
    return found


_STEPS: Mapping[object, Step] = {
    _ATEN.add.Tensor: _add,
    _ATEN.sub.Tensor: _subtract,
    _ATEN.mul.Tensor: _scale,
    _ATEN.mul.Scalar: _scale,
    _ATEN.div.Tensor: _scale,
    _ATEN.div.Scalar: _scale,
    _ATEN.maximum.default: _bound_below,
    _ATEN.max.other: _bound_below,
    _ATEN.clamp.default: _bound_below,
    _ATEN.clamp_min.default: _bound_below,
    _ATEN.masked_fill.Scalar: _masked_fill,
    _ATEN.masked_fill.Tensor: _masked_fill,
    _ATEN.where.self: _where,
    _ATEN.where.ScalarOther: _where,
    _ATEN.where.ScalarSelf: _where,
    **dict.fromkeys((*RESHAPES, *CASTS), _pass_through),
}
