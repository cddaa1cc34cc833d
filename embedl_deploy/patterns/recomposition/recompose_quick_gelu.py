"""Finds the sigmoid approximation of GELU that a model spells as single operations."""

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.modules import QuickGELU
from embedl_deploy.patterns.literals import about
from embedl_deploy.rewriting import Input, Named, Op, Pattern, PatternMatch, Phase

_ATEN = torch.ops.aten
_X = Named("x", Input())


class RecomposeQuickGelu(Pattern):
    """Replaces ``x * sigmoid(1.702 * x)`` with one ``QuickGELU``. Outputs move by rounding only."""

    phase = Phase.CONVERSION
    tree = Op(_ATEN.mul.Tensor, _X, Op(nn.Sigmoid, Op(_ATEN.mul.Tensor, _X, about("slope", 1.702))))

    def replace(self, match: PatternMatch) -> Node:
        activation = QuickGELU()
        activation.train(match.graph_module.training)
        return match.call_module(activation, match["x"])
