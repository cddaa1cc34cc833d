import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting import Pattern, PatternMatch, Phase
from embedl_deploy.rewriting.by_example import example_tree
from embedl_deploy.testing import check_pattern, check_rewrite
from embedl_deploy.tracing import trace

ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def scaled_exp(x: Tensor) -> Tensor:
    return (x * 0.125).exp()


def two_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.relu(), x.exp()


class UseSiLU(Pattern):
    """Replaces x · sigmoid(x) with one SiLU."""

    phase = Phase.CONVERSION
    tree = example_tree(swish, torch.ones(2))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.SiLU(), match["x"])


class ScaledExp(Pattern):
    """Captures a literal of the example."""

    phase = Phase.CONVERSION
    tree = example_tree(scaled_exp, torch.ones(2), captures={"scale": 0.125})

    def replace(self, match: PatternMatch) -> Node:
        scale = match.literal("scale")
        assert isinstance(scale, float)
        scaled = match.call_function(torch.ops.aten.mul.Tensor, match["x"], scale)
        return match.call_function(torch.ops.aten.exp.default, scaled)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * x


class Gate(nn.Module):
    """The sigmoid of one value times another."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.sigmoid(x) * y


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x * 3.5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu() + 1.0


def test_finds_what_the_example_computes_with_operands_swapped() -> None:
    check_rewrite(UseSiLU, before=Swish(), expected=nn.Sequential(nn.SiLU()), example=ROWS)


def test_reads_of_one_input_must_be_reads_of_one_value() -> None:
    graph_module = trace(Gate().eval(), (ROWS, ROWS + 1))

    matches = [UseSiLU().match(node, graph_module) for node in graph_module.graph.nodes]

    assert matches == [None] * len(matches)


def test_a_captured_literal_may_have_another_value() -> None:
    graph_module = trace(Scaled().eval(), (ROWS,))
    root = next(node for node in graph_module.graph.nodes if "exp" in node.name)

    match = ScaledExp().match(root, graph_module)

    assert isinstance(match, PatternMatch)
    assert match.literal("scale") == 3.5


def test_layers_of_a_module_are_found_by_their_class() -> None:
    tree = example_tree(Block(), ROWS)

    class Found(Pattern):
        phase = Phase.FUSION

    Found.tree = tree
    graph_module = trace(Block().eval(), (ROWS,))
    (add,) = [node for node in graph_module.graph.nodes if "add" in node.name]

    match = Found().match(add, graph_module)

    assert isinstance(match, PatternMatch)
    assert match.module("linear", nn.Linear).out_features == 4


def test_a_pattern_by_example_is_right() -> None:
    assert check_pattern(UseSiLU, max_examples=4).positives > 0


def test_refuses_an_example_with_two_outputs() -> None:
    with pytest.raises(PatternError, match="one tensor that the pattern replaces"):
        example_tree(two_outputs, ROWS)
