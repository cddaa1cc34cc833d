# ruff: noqa: ARG005  # every function takes the same three tensors
"""Trees of list arguments."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy import transform
from embedl_deploy.errors import PatternError
from embedl_deploy.explanation import explain
from embedl_deploy.graph.text import graph_text
from embedl_deploy.pattern_checks.check import check_pattern
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Literal,
    Named,
    OneOf,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Tree,
    example_tree,
)
from embedl_deploy.rewriting.found import Found
from embedl_deploy.rewriting.tree import Spec
from embedl_deploy.tracing import trace

ATEN = torch.ops.aten
A, B, C = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
Joining = Callable[[Tensor, Tensor, Tensor], Tensor]

A_AND_B = [Named("a", Input()), Named("b", Input())]


class Function(nn.Module):
    def __init__(self, function: Joining) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.function(a, b, c)


def match_at_end(tree: Tree, function: Joining, *inputs: Tensor) -> Found | None:
    """Returns the first way in which ``tree`` fits what a traced function returns."""
    (output,) = trace(Function(function), inputs or (A, B, C)).graph.find_nodes(op="output")
    step = next(tree.match(output.all_input_nodes[0], Found()), None)
    return None if step is None else step[0]


def captured(tree: Tree, function: Joining, *inputs: Tensor) -> dict[str, str]:
    found = match_at_end(tree, function, *inputs)
    assert found is not None, f"{tree} does not fit"
    return {name: nodes[0].name for name, nodes in found.captures.items()}


def said(tree: Tree, function: Joining) -> str:
    class Rule(Pattern):
        phase = Phase.FUSION

        def replace(self, match: PatternMatch) -> Node:
            return match.inputs[0]

    Rule.tree = tree
    return str(explain(Function(function), Rule, args=(A, B, C)))


def test_a_list_of_trees_is_matched_item_by_item() -> None:
    joined = Op(ATEN.cat.default, A_AND_B, 1)

    assert captured(joined, lambda a, b, c: torch.cat([a, b], 1)) == {"a": "a", "b": "b"}
    assert captured(joined, lambda a, b, c: torch.cat([b, a], 1)) == {"a": "b", "b": "a"}
    assert match_at_end(joined, lambda a, b, c: torch.cat([a, b], 2)) is None
    assert match_at_end(joined, lambda a, b, c: torch.cat([a, b, c], 1)) is None
    assert match_at_end(joined, lambda a, b, c: torch.cat([a], 1)) is None


def test_the_order_of_the_items_counts() -> None:
    joined = Op(ATEN.stack.default, [nn.ReLU, nn.Tanh])

    assert match_at_end(joined, lambda a, b, c: torch.stack([a.relu(), b.tanh()])) is not None
    assert match_at_end(joined, lambda a, b, c: torch.stack([b.tanh(), a.relu()])) is None


_LINKED: list[tuple[list[Spec], Joining]] = [
    ([..., Named("b", Input())], lambda a, b, c: torch.cat([a.relu(), b], 1)),
    ([Named("b", Input()), ...], lambda a, b, c: torch.cat([b, a.relu()], 1)),
]


@pytest.mark.parametrize(("items", "function"), _LINKED)
def test_an_item_can_be_the_link_before(items: list[Spec], function: Joining) -> None:
    tree = Chain(act=nn.ReLU, joined=Op(ATEN.cat.default, items, 1))

    assert captured(tree, function) == {"act": "relu", "joined": "cat", "b": "b"}
    assert match_at_end(tree, lambda a, b, c: torch.cat([a.sin(), b.cos()], 1)) is None


def test_lists_of_trees_beside_literals() -> None:
    positions = torch.tensor([0, 2])
    picked = Op(ATEN.index.Tensor, Input(), [None, Named("index", Input())])
    split = Op(ATEN.split_with_sizes.default, Input(), [Literal("left"), Literal("right")], 1)
    (output,) = trace(
        Function(lambda a, b, c: torch.split_with_sizes(a, [1, 2], 1)[0]), (A, B, C)
    ).graph.find_nodes(op="output")
    parts = output.all_input_nodes[0].all_input_nodes[0]

    assert captured(picked, lambda a, b, c: a[:, b], A, positions, C) == {"index": "b"}
    assert match_at_end(picked, lambda a, b, c: a[b], A, positions % 2, C) is None
    (step,) = split.match(parts, Found())
    assert step[0].literals == {"left": 1, "right": 2}


def test_a_list_of_plain_values_is_a_literal() -> None:
    permuted = Op(ATEN.permute.default, Input(), [0, 2, 1])

    assert match_at_end(permuted, lambda a, b, c: a.permute(0, 2, 1)) is not None
    assert match_at_end(permuted, lambda a, b, c: a.permute(1, 2, 0)) is None
    assert repr(permuted) == "Op(aten.permute.default, Input(), [0, 2, 1])"


def test_alternatives_may_have_other_lengths() -> None:
    joined = Op(ATEN.cat.default, OneOf(A_AND_B, [Named("a", Input())]), 1)

    assert captured(joined, lambda a, b, c: torch.cat([b, a], 1)) == {"a": "b", "b": "a"}
    assert captured(joined, lambda a, b, c: torch.cat([c], 1)) == {"a": "c"}
    assert match_at_end(joined, lambda a, b, c: torch.cat([a, b, c], 1)) is None


def test_a_list_of_nodes_is_no_literal() -> None:
    assert match_at_end(Op(ATEN.cat.default, Literal("xs")), lambda a, b, c: torch.cat([a])) is None


def test_a_tree_prints_as_it_is_written() -> None:
    tree = Chain(nn.ReLU, Op(ATEN.cat.default, [..., Named("b", Input())], 1))

    assert repr(tree) == ("Chain(Op(ReLU), Op(aten.cat.default, [..., Named('b', Input())], 1))")


_OTHER_LISTS: list[tuple[Joining, str]] = [
    (
        lambda a, b, c: torch.cat([b.tanh(), a.relu()], 1),
        "a list of 2: ReLU, Tanh, in this order, found a list of 2: %tanh, %relu",
    ),
    (
        lambda a, b, c: torch.cat([a.relu(), b.tanh(), c], 1),
        "expected a list of 2 as 'tensors', found a list of 3: %relu, %tanh, %c",
    ),
    (
        lambda a, b, c: torch.cat([a.relu(), b.sigmoid()], 1),
        "expected Tanh as item 1 of 'tensors' of %cat, found Sigmoid",
    ),
]


@pytest.mark.parametrize(("function", "says"), _OTHER_LISTS)
def test_explain_names_what_differs_in_a_list(function: Joining, says: str) -> None:
    assert says in said(Op(ATEN.cat.default, [nn.ReLU, nn.Tanh], 1), function)


@pytest.mark.parametrize("tree", [Input(), Named("xs", Input()), Literal("xs"), nn.ReLU])
def test_explain_asks_for_a_list_of_trees(tree: Tree | type[nn.Module]) -> None:
    text = said(Op(ATEN.cat.default, tree, 1), lambda a, b, c: torch.cat([a, b], 1))

    assert "found a list of 2: %a, %b" in text
    assert "write a list of as many trees, [Input(), Input()]" in text


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Op(ATEN.cat.default, xs=A_AND_B), "a list is none: name its items"),
        (
            lambda: Op(ATEN.cat.default, literals={"tensors": A_AND_B}),
            "'tensors' holds a tree: list it among the inputs",
        ),
    ],
)
def test_refuses_lists_in_the_wrong_place(build: Callable[[], Tree], says: str) -> None:
    with pytest.raises(PatternError, match=says):
        build()


def test_refuses_a_list_as_a_link() -> None:
    class Rule(Pattern):
        phase = Phase.FUSION
        tree = Chain([nn.Linear, nn.ReLU])

    with pytest.raises(PatternError, match="link 0 of its Chain is a list"):
        transform(nn.Linear(4, 4).eval(), (torch.ones(1, 4),), patterns=[Rule])


def test_an_example_that_joins_a_list_becomes_a_list_of_trees() -> None:
    def example(left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([left.relu(), right], 1)

    tree = example_tree(example, A, B)

    found = captured(tree, lambda a, b, c: torch.cat([b.relu(), a], 1))
    assert found == {"left": "b", "relu": "relu", "right": "a", "cat": "cat"}
    assert match_at_end(tree, lambda a, b, c: torch.cat([b, a.relu()], 1)) is None


class StackedLast(Pattern):
    """Replaces cat([relu(a), b], 1) by a cat of relu(a) alone and b, spelled in three steps."""

    phase = Phase.FUSION
    tree = Chain(act=nn.ReLU, joined=Op(ATEN.cat.default, [..., Named("b", Input())], 1))

    def replace(self, match: PatternMatch) -> Node:
        act = match.call_module(match.module("act", nn.ReLU), match["act"].args[0])
        return match.call_function(ATEN.concat.default, [act, match["b"]], 1)


class OverlookOrder(StackedLast):
    """Wrong: takes b, relu(a) for relu(a), b."""

    tree = OneOf(
        Op(ATEN.cat.default, [Named("act", nn.ReLU), Named("b", nn.Tanh)], 1),
        Op(ATEN.cat.default, [Named("b", nn.Tanh), Named("act", nn.ReLU)], 1),
    )


def test_a_rewrite_of_a_list_is_right_and_its_near_misses_are_explained() -> None:
    result = check_pattern(StackedLast, max_examples=6)

    assert result.positives >= 3
    tried = {"swapped operands", "longer list", "shorter list"}
    assert tried <= set(result.mutations)
    assert not [item for item in result.explanations if not item.is_explained], result


def test_a_pattern_that_overlooks_the_order_of_a_list_is_caught() -> None:
    with pytest.raises(AssertionError, match="rolled back"):
        check_pattern(OverlookOrder, max_examples=6)


class SplitJoin(Pattern):
    """Replaces a linear layer of a join by the sum of two layers."""

    phase = Phase.FUSION
    tree = Chain(joined=Op(ATEN.cat.default, A_AND_B, -1), layer=nn.Linear)

    def replace(self, match: PatternMatch) -> Node:
        layer = match.module("layer", nn.Linear)
        width = match["a"].meta["val"].shape[-1]
        weights = (layer.weight[:, :width], layer.weight[:, width:])
        parts: list[Node] = []
        for name, weight, bias in zip("ab", weights, (layer.bias, None), strict=True):
            part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            with torch.no_grad():
                part.weight.copy_(weight)
                if bias is not None:
                    part.bias.copy_(bias)
            parts.append(match.call_module(part, match[name]))
        return match.call_function(ATEN.add.Tensor, *parts)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(torch.cat([a, b], -1))


def test_a_layer_of_a_join_is_split() -> None:
    inputs = (torch.randn(2, 3), torch.randn(2, 4))
    result = transform(Joined().eval(), inputs, patterns=[SplitJoin], verify="raise")

    assert result.report.counts() == {"split-join": 1}
    assert "aten.cat" not in graph_text(result.model)
