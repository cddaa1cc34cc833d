"""Makes queries, keys, values and products of an attention visible."""

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments
from embedl_deploy.modules import ScaledDotProductAttention
from embedl_deploy.patterns.appended_zeros import objection_to_appended_zeros
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal


class DecomposeAttention(Pattern):
    """Replaces ``scaled_dot_product_attention`` with a ``ScaledDotProductAttention`` module.

    Outputs move by rounding only: the products are summed in another order.
    """

    phase = Phase.CONVERSION
    tree = Chain(attention=torch.ops.aten.scaled_dot_product_attention.default)

    def check(self, match: PatternMatch) -> Refusal | None:
        bound = bound_arguments(match.root)
        literals = (bound["dropout_p"], bound["is_causal"], bound["scale"])
        if any(isinstance(value, Node) for value in literals):
            return Refusal("its dropout, causality or scale is computed in the graph", match.root)
        key, value = bound["key"], bound["value"]
        assert isinstance(key, Node)
        assert isinstance(value, Node)
        return objection_to_appended_zeros(key, value)

    def replace(self, match: PatternMatch) -> Node:
        bound = bound_arguments(match.root)
        scale, dropout_p = bound["scale"], bound["dropout_p"]
        assert isinstance(dropout_p, (int, float))
        core = ScaledDotProductAttention(
            is_causal=bool(bound["is_causal"]),
            scale=float(scale) if isinstance(scale, (int, float)) else None,
            dropout_p=float(dropout_p),
            enable_gqa=bool(bound["enable_gqa"]),
        )
        core.train(match.graph_module.training)
        inputs = [bound["query"], bound["key"], bound["value"]]
        if bound["attn_mask"] is not None:
            inputs.append(bound["attn_mask"])
        return match.call_module(core, *inputs)
