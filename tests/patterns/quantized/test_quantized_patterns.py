"""What each quantized pattern names, on the modules it is for."""

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from embedl_deploy.graph import TransposedLinear
from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.modules.fused_conv import fused_conv
from embedl_deploy.modules.fused_linear import fused_linear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.passes.points import points_of
from embedl_deploy.passes.quantization import find_matches
from embedl_deploy.patterns.quantized import (
    QuantizeAttentionProducts,
    QuantizeConv,
    QuantizeLinear,
    QuantizeNormLinear,
    QuantizeResidual,
)
from embedl_deploy.rewriting import Pattern

ALL = (
    QuantizeAttentionProducts,
    QuantizeConv,
    QuantizeLinear,
    QuantizeNormLinear,
    QuantizeResidual,
)
CONV = nn.Conv2d(4, 4, 1)


def graph_of(module: nn.Module, inputs: int) -> GraphModule:
    """A graph that calls one module on its float inputs."""
    graph = torch.fx.Graph()
    values = [graph.placeholder(name) for name in ("x", "y", "z")[:inputs]]
    for value in values:
        value.meta["val"] = torch.empty(2, 4, 4, 4)
    graph.output(graph.call_module("layer", tuple(values)))
    return GraphModule(nn.ModuleDict({"layer": module}), graph)


def named_by(patterns: tuple[type[Pattern], ...], module: nn.Module, inputs: int) -> list[str]:
    """What the patterns name on the module: inputs by name, slots by slot."""
    matches = find_matches(graph_of(module, inputs), patterns)
    points = [point for match in matches for point in points_of(match)]
    return [str(point.slot or point.value) for point in points]


@pytest.mark.parametrize(
    ("module", "inputs", "named"),
    [
        (CONV, 1, ["x", "weight"]),
        (nn.ConvTranspose1d(4, 4, 1), 1, ["x", "weight"]),
        (fused_conv(CONV, activation=nn.ReLU()), 1, ["x", "weight"]),
        (fused_conv(CONV, adds_residual=True), 2, ["x", "weight", "y"]),
        (nn.Linear(4, 4), 1, ["x", "weight"]),
        (TransposedLinear(4, 4), 1, ["x", "weight"]),
        (fused_linear(nn.Linear(4, 4), nn.GELU()), 1, ["x", "weight"]),
        (FusedNormLinear(nn.LayerNorm(4), nn.Linear(4, 4)), 1, ["linear_input_stub", "weight"]),
        (
            FusedAttention(ScaledDotProductAttention()),
            3,
            ["query_stub", "key_stub", "probabilities_stub", "value_stub"],
        ),
        (nn.LayerNorm(4), 1, []),
        (nn.Embedding(4, 4), 1, []),
    ],
)
def test_every_operand_is_named_once(module: nn.Module, inputs: int, named: list[str]) -> None:
    assert named_by(ALL, module, inputs) == named


def test_the_residual_alone_is_named_by_its_own_pattern() -> None:
    module = fused_conv(CONV, adds_residual=True)

    assert named_by((QuantizeResidual,), module, 2) == ["y"]
    assert named_by((QuantizeConv,), module, 2) == ["x", "weight"]
