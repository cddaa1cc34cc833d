"""What explain says about the operands of a call."""

import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.explanation import explain
from embedl_deploy.rewriting import Fork, Input, Named, Op, Pattern, PatternMatch, Phase
from embedl_deploy.rewriting.difference import Difference
from embedl_deploy.tracing import trace

ATEN = torch.ops.aten
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Gate(Pattern):
    """x · sigmoid(-x), only to be explained."""

    phase = Phase.FUSION
    tree = Op(
        ATEN.mul.Tensor,
        Named("x", Input()),
        Op(nn.Sigmoid, Op(ATEN.neg.default, Named("x", Input()))),
    )

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.SiLU(), match["x"])


class JoinOfGates(Gate):
    """sigmoid(x) + tanh(y), in any order."""

    tree = Fork(ATEN.add.Tensor, Named("left", Op(nn.Sigmoid, Input())), nn.Tanh)


class Function(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "extra":
            return x * torch.sigmoid(-x).sin()
        if self.kind == "missing":
            return x * -x
        if self.kind == "other":
            return x * torch.sigmoid(torch.hypot(x, x))
        if self.kind == "other root":
            return torch.hypot(torch.sigmoid(-x), x)
        return torch.sigmoid(x).sin() + torch.tanh(x)


def first_difference(kind: str, pattern: type[Pattern] = Gate) -> Difference:
    explanation = explain(trace(Function(kind), (ROWS,)), pattern)
    assert explanation.first is not None, str(explanation)
    assert len(explanation.first.differences) == 1, str(explanation)
    return explanation.first.first


def test_names_a_node_too_many_before_an_operand() -> None:
    difference = first_difference("extra")

    assert (difference.aspect, difference.node) == ("extra", "sin")
    assert "Sigmoid" in difference.expected


def test_names_a_node_missing_before_an_operand() -> None:
    difference = first_difference("missing")

    assert (difference.aspect, difference.node) == ("link", "mul")
    assert difference.expected == "Sigmoid as 'other'"
    assert difference.found == "%neg = aten.neg.default itself"


def test_names_a_call_with_other_operands_in_the_place_of_one() -> None:
    difference = first_difference("other")

    assert (difference.aspect, difference.node) == ("target", "hypot")
    assert difference.expected == "aten.neg.default as input 0 of %sigmoid"


def test_names_another_call_at_the_end_whose_operands_are_swapped() -> None:
    difference = first_difference("other root")

    assert (difference.aspect, difference.node) == ("target", "hypot")
    assert difference.expected == "aten.mul.Tensor"


def test_names_a_node_too_many_before_a_branch() -> None:
    difference = first_difference("extra branch", JoinOfGates)

    assert (difference.aspect, difference.node) == ("extra", "sin")
