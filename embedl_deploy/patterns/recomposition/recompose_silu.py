"""Finds SiLU that a model spells as single operations."""

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.rewriting import Input, Named, Op, Pattern, PatternMatch, Phase

_X = Named("x", Input())


class RecomposeSilu(Pattern):
    """Replaces ``x * sigmoid(x)`` with one ``nn.SiLU``. Outputs move by rounding only."""

    phase = Phase.CONVERSION
    tree = Op(torch.ops.aten.mul.Tensor, _X, Op(nn.Sigmoid, _X))

    def replace(self, match: PatternMatch) -> Node:
        silu = nn.SiLU()
        silu.train(match.graph_module.training)
        return match.call_module(silu, match["x"])
