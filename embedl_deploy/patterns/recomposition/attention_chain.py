"""Follows softmax(q kᵀ · scale + masks) v from its last product back to q, k and v."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments, dtype_of, is_call, module_of, shape_of
from embedl_deploy.patterns.literals import number_of
from embedl_deploy.patterns.recomposition.attention_near_miss import near_miss
from embedl_deploy.patterns.recomposition.attention_operands import (
    factor_of,
    operands_of,
    own,
    transposed,
    unscaled,
)
from embedl_deploy.patterns.recomposition.attention_steps import walk_to_product
from embedl_deploy.patterns.recomposition.attention_walk import (
    CASTS,
    MOST_STEPS,
    RESHAPES,
    Mask,
    Walk,
    is_softmax,
)
from embedl_deploy.patterns.shapes import same_shape
from embedl_deploy.rewriting import Refusal

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class AttentionChain:
    """An attention spelled as single operations."""

    nodes: tuple[Node, ...]
    """What it consumes."""

    softmax: Node
    product: Node
    """The product of queries and keys."""

    query: Node
    key: Node
    key_is_transposed: bool
    """Whether ``key`` has shape (..., head size, keys)."""

    probabilities: Node
    """What the last product multiplies the values by."""

    value: Node
    value_is_transposed: bool
    """Whether ``value`` has shape (..., value size, keys), and the result is transposed too."""

    scale: float
    query_scale: Node | None
    """A factor of the queries that the graph computes."""

    query_is_divided: bool
    """Whether queries are divided by ``query_scale`` rather than multiplied."""

    masks: tuple[Mask, ...]
    dropout_p: float
    drops: bool
    """Whether the dropout is in training mode."""

    @property
    def is_regrouped(self) -> bool:
        """Whether batches and heads are grouped otherwise in the last product than in the first."""
        first, last = shape_of(self.product), shape_of(self.probabilities)
        return first is not None and last is not None and not same_shape(first[:-2], last[:-2])

    @property
    def layout(self) -> Node:
        """A node of the shape that the scores of the one attention have."""
        return self.probabilities if self.is_regrouped else self.product


def attention_chain(root: Node) -> AttentionChain | Refusal | None:
    """Returns the attention whose last product is ``root``.

    Returns:
        The chain; a refusal if much of an attention is there but something is not as attention
        kernels compute it; None if ``root`` ends no attention at all.
    """
    if len(root.args) < 2:
        return None
    for position in (0, 1):
        probabilities, value = root.args[position], root.args[1 - position]
        if not isinstance(probabilities, Node) or not isinstance(value, Node):
            return None
        walk = Walk().past(root)
        if position == 1:
            source = transposed(probabilities)
            if source is None:
                continue
            walk, probabilities = walk.past(probabilities), source
        found = _through_softmax(probabilities, walk)
        if found is not None:
            whole = _finish(root, (probabilities, value), position == 1, *found)
            return whole or near_miss(root)
    return near_miss(root)


def _through_softmax(node: Node, walk: Walk) -> tuple[Node, Node, Walk] | None:
    """Walks from the probabilities to the softmax; returns it, its input and the walk."""
    start = node
    while not is_softmax(node):
        module = module_of(node)
        if isinstance(module, nn.Dropout):
            walk = replace(walk, dropout_p=module.p, drops=module.training)
        elif is_call(node, _ATEN.dropout.default):
            bound = bound_arguments(node)
            p, drops = number_of(bound["p"]) or 0.0, bound["train"] is not False
            walk = replace(walk, dropout_p=p, drops=drops)
        elif not any(is_call(node, target) for target in (*CASTS, *RESHAPES)):
            return None
        if not node.all_input_nodes or walk.steps > MOST_STEPS:
            return None
        walk, node = walk.past(node), node.all_input_nodes[0]
    before, after = shape_of(node), shape_of(start)
    if before is None or after is None or not same_shape(before[-2:], after[-2:]):
        return None
    return node, node.all_input_nodes[0], replace(walk.past(node), grid=before[-2:])


def _finish(
    root: Node,
    operands: tuple[Node, Node],
    value_is_transposed: bool,
    softmax: Node,
    scores: Node,
    walk: Walk,
) -> AttentionChain | Refusal | None:
    found = walk_to_product(scores, walk)
    if found is None or isinstance(found, Refusal):
        return found
    product, done = found
    shape = shape_of(softmax)
    if shape is None or _softmax_dim(softmax) not in (-1, len(shape) - 1):
        return Refusal("its softmax does not run over the last dimension, the keys", softmax)
    query, key = operands_of(product)
    query, query_factor, done = unscaled(query, product, done)
    key, key_factor, done = unscaled(key, product, done)
    untransposed = transposed(key)
    if untransposed is not None:
        done = own(key, product, done)
        inner, key_factor_2, done = unscaled(untransposed, key, done)
        key, key_factor = inner, key_factor * key_factor_2
    chain = AttentionChain(
        nodes=done.nodes,
        softmax=softmax,
        product=product,
        query=query,
        key=key,
        key_is_transposed=untransposed is None,
        probabilities=operands[0],
        value=operands[1],
        value_is_transposed=value_is_transposed,
        scale=done.factor * factor_of(product) * query_factor * key_factor,
        query_scale=done.query_scale,
        query_is_divided=done.query_is_divided,
        masks=done.masks,
        dropout_p=done.dropout_p,
        drops=done.drops,
    )
    return _objection(chain, root) or chain


def _objection(chain: AttentionChain, root: Node) -> Refusal | None:
    dtypes = {dtype_of(node) for node in (chain.query, chain.key, chain.value)}
    if len(dtypes) != 1:
        names = ", ".join(sorted(str(dtype) for dtype in dtypes))
        return Refusal(f"queries, keys and values have different dtypes: {names}", root)
    product, scores = shape_of(chain.product), shape_of(chain.softmax)
    if product is None or scores is None or not same_shape(product[-2:], scores[-2:]):
        return Refusal("the scores are reshaped between the product and the softmax", root)
    if chain.is_regrouped and not _can_regroup(chain):
        return Refusal("its batches and heads are regrouped between the two products", root)
    return None


def _can_regroup(chain: AttentionChain) -> bool:
    """Tells whether queries and keys can be grouped as the values are."""
    shapes = [shape_of(node) for node in (chain.query, chain.key, chain.product, chain.layout)]
    query, key, here, there = (shape or () for shape in shapes)
    if any(not isinstance(size, int) for size in (*query, *key, *here, *there)):
        return False
    return same_shape(query[:-2], here[:-2]) and same_shape(key[:-2], here[:-2])


def _softmax_dim(softmax: Node) -> object:
    module = module_of(softmax)
    return module.dim if isinstance(module, nn.Softmax) else bound_arguments(softmax)["dim"]
