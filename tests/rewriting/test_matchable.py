"""Trees that cannot match anything are refused before the graph is looked at."""

import operator
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own short name
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.text import graph_text
from embedl_deploy.rewriting import (
    Chain,
    Fork,
    Input,
    Literal,
    Maybe,
    Named,
    OneOf,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Tree,
    Wildcard,
    apply_patterns,
)
from embedl_deploy.tracing import trace

ATEN = torch.ops.aten
ROW = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))


class Act(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + 1.0


BAD: list[tuple[Tree, str]] = [
    (Literal("scale"), "its last node is a literal"),
    (OneOf(1, 2), "its last node is a literal"),
    (Input(), "its last node is a value"),
    (Chain(nn.Linear, y=Input()), "its last node is a value"),
    (Maybe(nn.ReLU), "write ReLU itself"),
    (Chain(Maybe(nn.ReLU), Wildcard(nn.Dropout)), "every link of its Chain is optional"),
    (Op(nn.ReLU, Chain(Maybe(nn.GELU))), "every link of its Chain is optional"),
    (Chain(nn.Linear, 0.5, nn.ReLU), "link 1 of its Chain is the literal 0.5"),
    (Chain(nn.Linear, Input(), nn.ReLU), "link 1 of its Chain is Input"),
    (Fork(ATEN.add.Tensor, nn.ReLU, Named("one", 1.0)), "Fork is the literal 1.0"),
    (
        Fork(ATEN.add.Tensor, nn.ReLU, Input(), Input()),
        "and aten.add.Tensor joins 2",
    ),
    (Chain(nn.Linear, act=torch.relu), "no node runs torch.relu: .* Write nn.ReLU"),
    (Chain(nn.Linear, F.softmax), "Write torch.ops.aten.softmax"),
    (Op(torch.Tensor.view), r"no node runs torch.Tensor.view: .* Write torch.ops.aten.view"),
    (Wildcard((nn.ReLU, F.linear), "+"), "Write nn.Linear"),
    (Op(ATEN.add.Tensor, literals={"scale": 2}), "no argument 'scale'; it has self, other, alpha"),
    (Op(nn.ReLU, literals={"inplace": True}), "no argument 'inplace'; it has input. .*where="),
    (Op(ATEN.relu.default, Input(), Input()), "takes 1 arguments, 2 are listed"),
    (Op(ATEN.mul.Tensor, ..., 2), "stands for the link before this one in a Chain, and there is"),
    (Chain(Op(ATEN.mul.Tensor, ..., 2), nn.ReLU), "stands for the link before this one"),
    (
        Chain(a=nn.ReLU, b=Op(ATEN.mul.Tensor, Input(), 2)),
        "link 1 of its Chain, aten.mul.Tensor, lists its inputs, and none of them is `...`",
    ),
    (
        Op(ATEN.mul.Tensor, Named("x", Input()), Literal("x")),
        "'x' names both a node and a literal",
    ),
    (
        Op(ATEN.mean.dim, Input(), keepdim=True),
        "keepdim= of aten.mean.dim stands at the place of 'dim': .* literals={'keepdim': …}",
    ),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_tree_that_cannot_match_is_named_with_its_pattern_and_cure(
    bad: Tree, reason: str
) -> None:
    class NeverFires(Pattern):
        phase = Phase.FUSION
        tree = bad

        def replace(self, match: PatternMatch) -> Node:
            return match.inputs[0]

    graph_module = trace(Act(), (ROW,))
    before = graph_text(graph_module)

    with pytest.raises(
        PatternError, match=f"(?s)the tree of never-fires cannot match anything: .*{reason}"
    ):
        apply_patterns(graph_module, [NeverFires])

    assert graph_text(graph_module) == before


FINE: list[Tree] = [
    Chain(Maybe(nn.Linear), nn.ReLU),
    Chain(x=Input(), act=nn.ReLU),
    Chain(nn.Linear, Op(ATEN.add.Tensor, ..., 0.5), nn.ReLU),
    Chain(nn.Linear, Fork(ATEN.cat.default, nn.ReLU, nn.GELU, nn.SiLU)),
    Op(ATEN.add.Tensor, literals={"alpha": 2}),
    Op(operator.getitem),
    Op(ATEN.mean.dim, Input(), [-1], keepdim=True),
    Chain(nn.Linear, Op(ATEN.mul.Tensor, Op(nn.Sigmoid, ...), 2)),
    Chain(Maybe(nn.Linear), Op(ATEN.mul.Tensor, Input(), 2)),
    Chain(nn.Linear, Op(ATEN.mul.Tensor, nn.Sigmoid, 2)),
    Wildcard(nn.ReLU),
    Fork(nn.MultiheadAttention, Input(), Input(), Input()),
]


@pytest.mark.parametrize("fine", FINE)
def test_a_tree_that_may_match_is_taken(fine: Tree) -> None:
    class MayFire(Pattern):
        phase = Phase.FUSION
        tree = fine

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(nn.ReLU(), *match.inputs)

    apply_patterns(trace(Act(), (ROW,)), [MayFire])


@pytest.mark.parametrize("attribute", ["outputs", "qdq_points"])
@pytest.mark.parametrize("names", [("act", "norm"), ("norm.weight",)])
def test_a_name_that_the_tree_does_not_capture_is_refused(
    attribute: str, names: Sequence[str]
) -> None:
    class LosesItsName(Pattern):
        phase = Phase.FUSION
        tree = Chain(conv=nn.Linear, act=nn.ReLU)

    setattr(LosesItsName, attribute, names)

    with pytest.raises(
        PatternError,
        match=f"{attribute} of loses-its-name names 'norm.* it captures 'conv', 'act': name a link",
    ):
        apply_patterns(trace(Act(), (ROW,)), [LosesItsName])


def test_one_string_is_no_tuple_of_names() -> None:
    class ForgetsAComma(Pattern):
        phase = Phase.FUSION
        tree = Chain(conv=nn.Linear, act=nn.ReLU)
        outputs = "conv"  # pyright: ignore[reportAssignmentType]  # wrong on purpose

    with pytest.raises(PatternError, match=r"outputs of forgets-a-comma is a tuple .*'conv'"):
        apply_patterns(trace(Act(), (ROW,)), [ForgetsAComma])


def test_points_inside_a_capture_are_known_by_its_name() -> None:
    class KnowsItsName(Pattern):
        phase = Phase.QUANTIZATION
        tree = Chain(layer=nn.Linear, act=Maybe(nn.ReLU), drop=Wildcard(nn.Dropout))
        qdq_points = ("layer[0]", "layer.weight", "act", "drop")

    record = apply_patterns(trace(Act(), (ROW,)), [KnowsItsName])

    assert not record.applied


def test_a_phase_that_is_none_is_named() -> None:
    class SaysFusion(Pattern):
        phase = "fusion"  # pyright: ignore[reportAssignmentType]  # wrong on purpose
        tree = Chain(nn.ReLU)

    with pytest.raises(
        PatternError, match=r"phase of says-fusion is 'fusion' of type str.*Phase.FUSION"
    ):
        apply_patterns(trace(Act(), (ROW,)), [SaysFusion])


def test_a_tree_that_is_none_is_named() -> None:
    class NamesAClass(Pattern):
        phase = Phase.FUSION
        tree = nn.ReLU  # pyright: ignore[reportAssignmentType]  # wrong on purpose

    with pytest.raises(PatternError, match=r"tree of names-a-class is .*ReLU.*: write Chain"):
        apply_patterns(trace(Act(), (ROW,)), [NamesAClass])
