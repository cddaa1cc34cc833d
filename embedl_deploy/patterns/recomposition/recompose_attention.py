"""Finds attention that a model spells as single operations."""

import torch
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import shape_of
from embedl_deploy.modules import ScaledDotProductAttention
from embedl_deploy.patterns.appended_zeros import objection_to_appended_zeros
from embedl_deploy.patterns.recomposition.attention_chain import AttentionChain, attention_chain
from embedl_deploy.patterns.recomposition.attention_mask import combined_mask, objection_to_masks
from embedl_deploy.patterns.recomposition.attention_walk import PRODUCTS
from embedl_deploy.rewriting import Pattern, PatternMatch, Phase, Refusal

_ATEN = torch.ops.aten


class RecomposeAttention(Pattern):
    """Replaces ``softmax(q @ kᵀ * scale + mask) @ v`` with a ``ScaledDotProductAttention``.

    Takes self and cross attention, causal, windowed and relative-position masks, filled and
    added, scales before or after the product, transposed values, three to five dimensions.
    Outputs move by rounding only; a query that sees no key gives 0 where the model gave NaN.
    """

    phase = Phase.CONVERSION
    roots = PRODUCTS

    def match(self, root: Node, graph_module: GraphModule) -> PatternMatch | Refusal | None:
        chain = attention_chain(root)
        if not isinstance(chain, AttentionChain):
            return chain
        return PatternMatch.of(
            self,
            graph_module,
            root=root,
            nodes=chain.nodes,
            captures={
                "query": chain.query,
                "key": chain.key,
                "value": chain.value,
                "scores": chain.product,
                "softmax": chain.softmax,
            },
        )

    def check(self, match: PatternMatch) -> Refusal | None:
        chain = _chain_of(match)
        return objection_to_masks(chain) or objection_to_appended_zeros(chain.key, chain.value)

    def replace(self, match: PatternMatch) -> Node:
        chain = _chain_of(match)
        is_training = match.graph_module.training
        # Dropout that the model switches off by hand while it trains stays off.
        dropout_p = chain.dropout_p if chain.drops or not is_training else 0.0
        core = ScaledDotProductAttention(scale=chain.scale, dropout_p=dropout_p)
        core.train(is_training)
        query, key, value = chain.query, chain.key, chain.value
        if chain.query_scale is not None:
            scaled = _ATEN.div.Tensor if chain.query_is_divided else _ATEN.mul.Tensor
            query = match.call_function(scaled, query, chain.query_scale)
        if chain.is_regrouped:
            query, key = (_regrouped(match, node, chain.layout) for node in (query, key))
        if chain.key_is_transposed:
            key = match.call_function(_ATEN.transpose.int, key, -2, -1)
        if chain.value_is_transposed:
            value = match.call_function(_ATEN.transpose.int, value, -2, -1)
        mask = combined_mask(match, chain)
        masks = () if mask is None else (mask,)
        attended = match.call_module(core, query, key, value, *masks)
        if chain.value_is_transposed:
            return match.call_function(_ATEN.transpose.int, attended, -2, -1)
        return attended


def _regrouped(match: PatternMatch, node: Node, layout: Node) -> Node:
    """Groups the leading dimensions of ``node`` as those of ``layout`` are."""
    own, wanted = shape_of(node), shape_of(layout)
    assert own is not None
    assert wanted is not None
    sizes = [*map(int, wanted[:-2]), *map(int, own[-2:])]
    return match.call_function(_ATEN.reshape.default, node, sizes)


def _chain_of(match: PatternMatch) -> AttentionChain:
    chain = attention_chain(match.root)
    assert isinstance(chain, AttentionChain)
    return chain
