"""Spells a product of an activation with a weight as a linear layer."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.computed_weight import Computation, Ref, Step, compute_parameters
from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.patterns.conversion.weight_products import (
    PRODUCTS,
    Attributes,
    WeightProduct,
    weight_of,
    weight_product,
)
from embedl_deploy.rewriting import Pattern, PatternMatch, Phase, Refusal
from embedl_deploy.tracing.computed import computed_weight

_ATEN = torch.ops.aten


class ReplaceProductWithLinear(Pattern):
    """Replaces ``einsum("ibh,hnd->ibnd", x, weight)`` with a linear layer and an ``unflatten``.

    Takes ``einsum``, ``matmul``, ``bmm``, ``mm`` and ``linear`` of an activation with a parameter,
    or with what is computed from parameters alone, whichever comes first, where every index is
    either one of the activation's or the weight's own and in the result, or in both and summed
    over. The layer computes its weight from the model's parameter. Outputs move by rounding only:
    the product may be summed in another order.
    """

    phase = Phase.CONVERSION
    roots = PRODUCTS

    def match(self, root: Node, graph_module: GraphModule) -> PatternMatch | None:
        weight = weight_of(root)
        if weight is None:
            return None
        # The computation is a part of the match: the layer does it itself.
        computed = computed_weight(weight, Attributes(graph_module))
        nodes = (root,) if computed is None else (*computed.nodes, root)
        match = PatternMatch.of(self, graph_module, root=root, nodes=nodes)
        product = weight_product(root, weight)
        match.refusal = product if isinstance(product, Refusal) else None
        return match

    def decline(self, match: PatternMatch) -> Refusal | None:
        # Others may read what the weight is computed from: for them it stays.
        return match.refusal

    def replace(self, match: PatternMatch) -> dict[Node, Node]:
        weight = weight_of(match.root)
        assert weight is not None
        product = weight_product(match.root, weight)
        assert isinstance(product, WeightProduct)
        rows = _permuted(match, product.activation, product.activation_order)
        if len(product.activation_order) - product.rows > 1:
            rows = match.call_function(_ATEN.flatten.using_ints, rows, product.rows)
        result = match.call_module(_layer(match, product), rows)
        if not product.columns:
            result = match.call_function(_ATEN.squeeze.dim, result, -1)
        elif len(product.columns) > 1:
            result = match.call_function(_ATEN.unflatten.int, result, -1, product.columns)
        kept = {node: node for node in match.nodes if not set(match.nodes).issuperset(node.users)}
        return {**kept, match.root: _permuted(match, result, product.result_order)}


def _permuted(match: PatternMatch, node: Node, order: Sequence[int]) -> Node:
    if list(order) == list(range(len(order))):
        return node
    return match.call_function(_ATEN.permute.default, node, list(order))


def _layer(match: PatternMatch, product: WeightProduct) -> nn.Module:
    """Returns the layer, around the parameter itself where it is stored as one stores it."""
    weight, order = product.weight, product.weight_order
    is_matrix = len(order) == 2 and len(product.columns) == 1
    if weight.op == "get_attr" and is_matrix:
        parameter = cast("nn.Parameter", attribute_of(match.graph_module, str(weight.target)))
        layer_class = nn.Linear if order == [0, 1] else TransposedLinear
        layer = layer_class(product.in_features, product.out_features, bias=False, device="meta")
        layer.weight = parameter
        return layer.train(match.graph_module.training)
    layer = nn.Linear(product.in_features, product.out_features, bias=False, device="meta")
    compute_parameters(layer, {"weight": _computation(match, product)})
    return layer.train(match.graph_module.training)


def _computation(match: PatternMatch, product: WeightProduct) -> Computation:
    """Returns what computes the weight of the layer, (out, in)."""
    state = Attributes(match.graph_module)
    computed = computed_weight(product.weight, state)
    names = (str(product.weight.target),) if computed is None else computed.state
    steps = () if computed is None else computed.steps
    last = len(names) + len(steps) - 1
    shape = [product.out_features, product.in_features]
    tensors: list[Tensor] = [state[name].tensor for name in names]
    return Computation(
        tensors,
        (
            *steps,
            Step(_ATEN.permute.default, (Ref(last), product.weight_order), {}),
            Step(_ATEN.reshape.default, (Ref(last + 1), shape), {}),
        ),
    )
