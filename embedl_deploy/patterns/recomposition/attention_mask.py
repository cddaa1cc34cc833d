"""Builds the one additive mask of a recomposed attention."""

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import dtype_of, shape_of
from embedl_deploy.patterns.recomposition.attention_chain import AttentionChain
from embedl_deploy.patterns.recomposition.attention_walk import Mask, broadcasts_alike
from embedl_deploy.patterns.shapes import Size, is_one, same_shape
from embedl_deploy.rewriting import PatternMatch, Refusal

_ATEN = torch.ops.aten


def objection_to_masks(chain: AttentionChain) -> Refusal | None:
    """Returns why the masks cannot become one, None if they can."""
    for mask in chain.masks:
        shape, there, here = shape_of(mask.node), shape_of(mask.scores), shape_of(chain.layout)
        if shape is None or there is None or here is None:
            return Refusal("the shape of its mask was not recorded", mask.node)
        if len(shape) > len(there):
            return Refusal("its mask has more dimensions than the scores", mask.node)
        is_shared = all(is_one(size) for size in shape[:-2]) and same_shape(there[-2:], here[-2:])
        if broadcasts_alike(mask, chain.layout) or is_shared:
            continue
        if not _is_static((*there, *here, *shape)):
            return Refusal("its mask is added to scores regrouped by a dynamic size", mask.node)
    return None


def combined_mask(match: PatternMatch, chain: AttentionChain) -> Node | None:
    """Inserts what makes one additive mask of all, None where there is none."""
    total: Node | None = None
    for mask in chain.masks:
        added = _aligned(match, mask, _additive(match, mask, chain), chain.layout)
        total = added if total is None else match.call_function(_ATEN.add.Tensor, total, added)
    return total


def _additive(match: PatternMatch, mask: Mask, chain: AttentionChain) -> Node:
    dtype = dtype_of(chain.query)
    node = mask.node
    if mask.fill is not None:
        if mask.is_kept:
            node = match.call_function(_ATEN.logical_not.default, node)
        zeros = match.call_function(_ATEN.zeros_like.default, node, dtype=dtype)
        return match.call_function(_ATEN.masked_fill.Scalar, zeros, node, mask.fill)
    if mask.factor != 1.0:
        node = match.call_function(_ATEN.mul.Tensor, node, mask.factor)
    if dtype_of(mask.node) != dtype:
        node = match.call_function(_ATEN.to.dtype, node, dtype)
    return node


def _aligned(match: PatternMatch, mask: Mask, added: Node, layout: Node) -> Node:
    """Regroups the leading dimensions of a mask as those of the scores were."""
    shape, there, here = shape_of(mask.node), shape_of(mask.scores), shape_of(layout)
    assert shape is not None
    assert there is not None
    assert here is not None
    if broadcasts_alike(mask, layout):
        return added
    if not same_shape(there[-2:], here[-2:]):
        spread = match.call_function(_ATEN.expand.default, added, [*map(int, there)])
        return match.call_function(_ATEN.reshape.default, spread, [*map(int, here)])
    leading = len(shape) - 2
    if all(is_one(size) for size in shape[:-2]):
        if leading <= 0:
            return added
        return match.call_function(_ATEN.squeeze.dims, added, list(range(leading)))
    full = [*map(int, there[:-2]), *map(int, shape[-2:])]
    expanded = match.call_function(_ATEN.expand.default, added, full)
    regrouped = [*map(int, here[:-2]), *map(int, shape[-2:])]
    return match.call_function(_ATEN.reshape.default, expanded, regrouped)


def _is_static(sizes: tuple[Size, ...]) -> bool:
    return all(isinstance(size, int) for size in sizes)
