"""Removes checks of what tracing has already recorded."""

from typing import cast

import torch
from torch import SymBool, SymFloat, SymInt
from torch.fx import Node

from embedl_deploy.graph.nodes import value_of
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal

_ATEN = torch.ops.aten


class RemoveAssert(Pattern):
    """Removes assertions on tensors and sizes from the graph. Exact.

    What they check is part of the graph's record (dtypes, ranges of sizes), and a target has no
    kernel for them. Those on sizes that depend on data stay: without them the graph could not be
    exported again.
    """

    phase = Phase.CONVERSION
    tree = Chain(
        check=(
            _ATEN._assert_tensor_metadata,
            _ATEN._assert_async,
            _ATEN._assert_scalar,
            _ATEN.sym_constrain_range,
            _ATEN.sym_constrain_range_for_size,
        )
    )

    def check(self, match: PatternMatch) -> Refusal | None:
        if not match.root.all_input_nodes:
            return Refusal("the assertion is on a constant", match.root)
        for read in match.root.all_input_nodes:
            if _depends_on_data(read):
                return Refusal(f"the size %{read.name} depends on data", read)
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]


def _depends_on_data(node: Node) -> bool:
    value = value_of(node)
    if not isinstance(value, (SymInt, SymBool, SymFloat)):
        return False
    # Imported late because it takes sympy, which static graphs never need.
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(free_unbacked_symbols(cast("SymInt", value)))
