from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import bound_arguments, shape_of
from embedl_deploy.modules import FusedConvBN, fused_conv
from embedl_deploy.patterns import FuseConvNorm
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Literal,
    Maybe,
    Named,
    OneOf,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
    Wildcard,
)
from embedl_deploy.rewriting.conditions import HasRank, IsParameter
from embedl_deploy.testing import check_pattern

ATEN = torch.ops.aten


class MergeConvNorm(Pattern):
    """Right."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d)

    def replace(self, match: PatternMatch) -> Node:
        conv, norm = match.module("conv", nn.Conv2d), match.module("norm", nn.BatchNorm2d)
        return match.call_module(fused_conv(conv, norm), match["conv"].args[0])


class DropNorm(MergeConvNorm):
    """Wrong: leaves the norm out."""

    def replace(self, match: PatternMatch) -> Node:
        return match["conv"]


class FoldOfEvalStatistics(MergeConvNorm):
    """Wrong in training mode: folds the running statistics."""

    def replace(self, match: PatternMatch) -> Node:
        conv, norm = match.module("conv", nn.Conv2d), match.module("norm", nn.BatchNorm2d)
        fused = FusedConvBN(conv, norm)
        norm.eval()
        return match.call_module(fused, match["conv"].args[0])


class SwapDifference(Pattern):
    """Wrong: takes x - relu(y) for relu(y) - x."""

    phase = Phase.FUSION
    tree = OneOf(
        Op(ATEN.sub.Tensor, Named("act", nn.ReLU), Named("x", Input())),
        Op(ATEN.sub.Tensor, Named("x", Input()), Named("act", nn.ReLU)),
    )

    def replace(self, match: PatternMatch) -> Node:
        doubled = match.call_function(ATEN.neg.default, match["x"])
        return match.call_function(ATEN.add.Tensor, match["act"], doubled)


class OverlookLiteral(Pattern):
    """Wrong: takes any power for a square."""

    phase = Phase.CONVERSION
    tree = Chain(power=ATEN.pow.Tensor_Scalar)

    def replace(self, match: PatternMatch) -> Node:
        base = match.root.args[0]
        return match.call_function(ATEN.mul.Tensor, base, base)


class NeverEnds(Pattern):
    """Wrong: finds its own result again."""

    phase = Phase.FUSION
    tree = Chain(act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.ReLU(), match.root.args[0])


class SquareByProduct(OverlookLiteral):
    """Right: captures the literal and looks at it."""

    tree = Op(ATEN.pow.Tensor_Scalar, Named("base", Input()), Literal("exponent"))

    def check(self, match: PatternMatch) -> Refusal | None:
        exponent = match.literal("exponent")
        return None if exponent == 2 else Refusal(f"the power is {exponent}", match.root)


class SkipIdentities(Pattern):
    """Right: leaves out a run of modules that change nothing."""

    phase = Phase.FUSION
    tree = Chain(
        linear=Op(nn.Linear, where=lambda node: len(shape_of(node) or ()) == 3),
        run=Wildcard((nn.Identity,), "{1,2}"),
        drop=Maybe(nn.Dropout),
        last=nn.Sigmoid,
    )

    def check(self, match: PatternMatch) -> Refusal | None:
        return Refusal("there is a dropout", match.root) if "drop" in match else None

    def replace(self, match: PatternMatch) -> dict[Node, Node]:
        return {match.root: match.call_module(nn.Sigmoid(), match["linear"])}


@pytest.mark.parametrize("pattern", [MergeConvNorm, SquareByProduct])
def test_a_right_pattern_passes(pattern: type[Pattern]) -> None:
    result = check_pattern(pattern, max_examples=5)

    assert result.positives > 0
    assert result.mutations.total() > 0
    assert result.unexplained == []


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (DropNorm, "rolled back"),
        (FoldOfEvalStatistics, "with training mode"),
        (SwapDifference, "rolled back"),
        (OverlookLiteral, "rolled back"),
        (NeverEnds, "it rewrites its own result"),
    ],
)
def test_a_wrong_pattern_is_caught_with_its_graph(pattern: type[Pattern], says: str) -> None:
    with pytest.raises(AssertionError, match=says) as caught:
        check_pattern(pattern, max_examples=6)

    assert "%input_1" in str(caught.value)


def test_asks_for_examples_where_nothing_fits() -> None:
    class Impossible(MergeConvNorm):
        tree = Chain(conv=Op(nn.Conv2d, where=lambda node: "never" in bound_arguments(node)))

    with pytest.raises(AssertionError, match=r"give examples=\[\(model, args\)\]"):
        check_pattern(Impossible, max_examples=2)


def test_runs_and_optional_links_are_made_up_too() -> None:
    result = check_pattern(SkipIdentities, max_examples=6)

    assert result.positives > 0
    assert "right in" in str(result)


class TransposedProduct(Pattern):
    """Wrong: takes a product with any transpose for one with the last two dimensions swapped."""

    phase = Phase.CONVERSION
    transposed = Op(ATEN.transpose.int, Named("b", Input()), Literal("first"), Literal("second"))
    tree = Op(ATEN.matmul.default, Named("a", Input()), transposed)

    def replace(self, match: PatternMatch) -> Node:
        swapped = match.call_function(ATEN.mT.default, match["b"])
        return match.call_function(ATEN.bmm.default, match["a"], swapped)


class CheckedProduct(TransposedProduct):
    """Right: looks at the dimensions."""

    def check(self, match: PatternMatch) -> Refusal | None:
        dims = {match.literal("first"), match.literal("second")}
        return None if dims == {1, 2} else Refusal(f"dimensions {dims} are swapped", match.root)


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b.transpose(1, 2)


PRODUCT = (Product().eval(), (torch.randn(2, 5, 6), torch.randn(2, 7, 6)))


def test_the_literals_of_an_example_are_changed_on_inputs_that_take_other_values() -> None:
    with pytest.raises(AssertionError, match=r"rolled back.*changed literal"):
        check_pattern(TransposedProduct, examples=[PRODUCT], max_examples=1)

    result = check_pattern(CheckedProduct, examples=[PRODUCT], max_examples=1)
    assert result.mutations["changed literal"] >= 2
    assert result.unchanged_literals == []


class TwoProducts(nn.Module):
    """No other dimensions than these can be swapped, on inputs of no size."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a.reshape(2, 5, 6) @ b.reshape(2, 7, 6).transpose(1, 2)


def test_names_the_captured_literals_that_no_graph_gives_another_value() -> None:
    args = (torch.randn(10, 6), torch.randn(14, 6))

    result = check_pattern(OnlyTwoProducts, examples=[(TwoProducts().eval(), args)])

    assert result.unchanged_literals == ["first", "second"]
    assert "never changed: literal 'first', 'second'" in str(result)


class OnlyTwoProducts(TransposedProduct):
    """Matches by hand: no graphs are made from a tree."""

    tree = None
    roots = (ATEN.matmul.default,)

    def match(self, root: Node, graph_module: GraphModule) -> PatternMatch | None:
        a, turned = root.all_input_nodes
        if turned.target is not ATEN.transpose.int:
            return None
        first, second = turned.args[1:]
        return PatternMatch.of(
            self,
            graph_module,
            root=root,
            nodes=(turned, root),
            captures={"a": a, "b": turned.all_input_nodes[0]},
            literals={"first": first, "second": second},
        )


class DropMean(Pattern):
    """Right: declines all; only its made-up graphs are looked at."""

    phase = Phase.CONVERSION
    tree = Op(ATEN.neg.default, Named("mean", Op(ATEN.mean.dim, Input(), Literal("dims"), True)))

    def check(self, match: PatternMatch) -> Refusal | None:
        assert isinstance(match.literal("dims"), list), "what traced graphs hold"
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(ATEN.mul.Tensor, match["mean"], -1)


def test_made_up_graphs_spell_arguments_as_tracing_does() -> None:
    result = check_pattern(DropMean, max_examples=3)

    assert result.positives == 3


class RankSeven(DropMean):
    """Right, but no graph is made with so many dimensions."""

    tree = Op(ATEN.neg.default, Named("mean", Input()), where=HasRank(7))


class ScaledConv(DropMean):
    """Right, but no graph is made with a parameter beside a layer."""

    tree = Chain(
        conv=nn.Conv2d,
        mul=Op(ATEN.mul.Tensor, ..., Named("gamma", Input(where=IsParameter()))),
    )


def test_torch_says_nothing_of_the_graphs_that_it_does_not_take(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(AssertionError, match=r"never applied.*a parameter or buffer"):
        check_pattern(ScaledConv, max_examples=1)

    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_says_which_condition_no_made_up_graph_meets() -> None:
    with pytest.raises(AssertionError, match=r"never applied.*expected rank 7, found rank \d"):
        check_pattern(RankSeven, max_examples=2)


@pytest.mark.parametrize(
    "example", [nn.ReLU(), (nn.ReLU(),), (nn.ReLU, (torch.ones(1),)), (nn.ReLU(), torch.ones(1))]
)
def test_an_example_is_a_model_with_its_inputs(example: object) -> None:
    examples = cast("list[tuple[nn.Module, tuple[object, ...]]]", [example])
    with pytest.raises(ValueError, match=r"write \[\(model, \(x,\)\)\]"):
        check_pattern(FuseConvNorm, examples=examples)


@pytest.mark.parametrize("count", [0, -1, "3"])
def test_how_many_graphs_to_make_is_a_number(count: object) -> None:
    with pytest.raises(ValueError, match="max_examples is how many graphs to make, at least 1"):
        check_pattern(FuseConvNorm, max_examples=cast("int", count))
