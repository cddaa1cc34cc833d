# ruff: noqa: ARG005  # every function takes the same three tensors
"""What a fork admits: exactly its branches, in any order only where the call commutes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.errors import PatternError
from embedl_deploy.explanation import explain
from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting import Chain, Fork, Input, Named, OneOf, Op, Pattern, Phase, Tree
from embedl_deploy.rewriting.found import Found
from embedl_deploy.rewriting.matchable import require_matchable
from embedl_deploy.rewriting.operands import COMMUTATIVE, commutes
from embedl_deploy.tracing import trace

ATEN = torch.ops.aten
A, B, C = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
CAT = Op(ATEN.cat.default, literals={"dim": 1})

Joining = Callable[[Tensor, Tensor, Tensor], Tensor]


class Function(nn.Module):
    def __init__(self, function: Joining) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.function(a.relu(), b.tanh(), c)


def fits(tree: Tree, function: Joining) -> bool:
    (output,) = trace(Function(function), (A, B, C)).graph.find_nodes(op="output")
    return next(tree.match(output.all_input_nodes[0], Found()), None) is not None


def said(tree_: Tree, function: Joining) -> str:
    class Rule(Pattern):
        phase = Phase.FUSION
        tree = tree_

    return str(explain(Function(function), Rule, args=(A, B, C)))


_ORDERED: list[tuple[Tree | Target, Callable[[Tensor, Tensor], Tensor]]] = [
    (ATEN.sub.Tensor, lambda a, b: a - b),
    (ATEN.div.Tensor, lambda a, b: a / b),
    (CAT, lambda a, b: torch.cat([a, b], 1)),
    (ATEN.stack.default, lambda a, b: torch.stack([a, b])),
    (Op(ATEN.add.Tensor, literals={"alpha": 2}), lambda a, b: torch.add(a, b, alpha=2)),
]


@pytest.mark.parametrize(("join", "function"), _ORDERED)
def test_the_order_counts_where_the_call_does_not_commute(
    join: Tree | Target, function: Callable[[Tensor, Tensor], Tensor]
) -> None:
    alone = Fork(join, act=nn.ReLU, other=nn.Tanh)
    behind = Chain(act=nn.ReLU, join=Fork(join, other=nn.Tanh))

    for tree in (alone, behind):
        assert fits(tree, lambda a, b, c: function(a, b))
        assert not fits(tree, lambda a, b, c: function(b, a))
        assert "in this order" in said(tree, lambda a, b, c: function(b, a))


@pytest.mark.parametrize("op", sorted(COMMUTATIVE, key=str), ids=str)
def test_calls_that_commute_do(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    values = [torch.arange(6).reshape(2, 3) * 7 % 5, torch.arange(6).reshape(2, 3) * 5 % 7]
    if str(op).split(".")[1] in ("logaddexp", "logaddexp2", "hypot", "fmax", "fmin"):
        values = [value.double() for value in values]

    assert torch.equal(op(*values), op(*reversed(values)))


@pytest.mark.parametrize("op", [ATEN.eq.Tensor, ATEN.maximum.default, ATEN.logical_xor.default])
def test_either_order_fits_where_the_call_commutes(op: Callable[..., Tensor]) -> None:
    alone = Fork(op, act=nn.ReLU, other=nn.Tanh)
    behind = Chain(act=nn.ReLU, join=Fork(op, other=nn.Tanh))

    for tree in (alone, behind, Op(op, nn.ReLU, nn.Tanh)):
        assert fits(tree, lambda a, b, c: op(a, b))
        assert fits(tree, lambda a, b, c: op(b, a))


def test_a_scaled_addition_does_not_commute() -> None:
    scaled = Op(ATEN.add.Tensor, nn.ReLU, nn.Tanh, literals={"alpha": 2})
    graph = trace(Function(lambda a, b, c: torch.add(a, b, alpha=2)), (A, B, C)).graph
    (add,) = graph.find_nodes(op="call_function", target=ATEN.add.Tensor)

    assert not commutes(add)
    assert fits(scaled, lambda a, b, c: torch.add(a, b, alpha=2))
    assert not fits(scaled, lambda a, b, c: torch.add(b, a, alpha=2))
    by_chain = Chain(nn.Tanh, Op(ATEN.add.Tensor, literals={"alpha": 2}))
    assert not fits(by_chain, lambda a, b, c: torch.add(a, b, alpha=2))


_OTHER_JOINS: list[Joining] = [
    lambda a, b, c: torch.cat([a, b], 2),
    lambda a, b, c: torch.cat([a, b, c], 1),
    lambda a, b, c: torch.cat([c, a, b], 1),
    lambda a, b, c: torch.cat([a], 1),
]


@pytest.mark.parametrize("function", _OTHER_JOINS)
def test_every_operand_and_every_other_argument_counts(function: Joining) -> None:
    assert fits(Fork(CAT, Input(), Input()), lambda a, b, c: torch.cat([a, b], 1))
    assert not fits(Fork(CAT, Input(), Input()), function)


def test_only_one_operand_may_be_the_link_before() -> None:
    one = Chain(act=nn.ReLU, join=Fork(CAT, Input()))
    two = Chain(act=nn.ReLU, join=Fork(CAT, Input(), Input()))

    assert fits(one, lambda a, b, c: torch.cat([a, b], 1))
    assert not fits(one, lambda a, b, c: torch.cat([a, b, c], 1))
    assert fits(two, lambda a, b, c: torch.cat([a, b, c], 1))
    assert not fits(two, lambda a, b, c: torch.cat([b, a, c], 1))
    assert not fits(two, lambda a, b, c: torch.cat([a, b, c, c], 1))


def test_a_fork_inside_a_link_is_behind_the_link_before_it() -> None:
    for link in (
        Op(ATEN.neg.default, Fork(ATEN.sub.Tensor, nn.Tanh)),
        OneOf(Chain(Named("sub", Fork(ATEN.sub.Tensor, nn.Tanh)), ATEN.neg.default), nn.GELU),
    ):
        assert fits(Chain(nn.ReLU, link), lambda a, b, c: -(a - b))
        assert not fits(Chain(nn.ReLU, link), lambda a, b, c: -(b - a))
        assert not fits(link, lambda a, b, c: -(a - b))


def test_other_arguments_must_have_their_defaults() -> None:
    three = Fork(ATEN.addcmul.default, nn.ReLU, nn.Tanh, Input())
    halved = Fork(Op(ATEN.addcmul.default, literals={"value": 0.5}), nn.ReLU, nn.Tanh, Input())

    assert fits(three, torch.addcmul)
    assert not fits(three, lambda a, b, c: torch.addcmul(a, b, c, value=0.5))
    assert "value=1, its default" in said(three, lambda a, b, c: torch.addcmul(a, b, c, value=0.5))
    assert fits(halved, lambda a, b, c: torch.addcmul(a, b, c, value=0.5))
    assert not fits(Fork(ATEN.add.Tensor, nn.ReLU), lambda a, b, c: a + 2)


def test_each_way_to_join_names_its_own_arguments() -> None:
    join = OneOf(Op(ATEN.cat.default, literals={"dim": 1}), ATEN.cat.default)

    for tree in (Fork(join, Input(), Input()), Fork(Named("join", join), Input(), Input())):
        assert fits(tree, lambda a, b, c: torch.cat([a, b], 1))
        assert fits(tree, lambda a, b, c: torch.cat([a, b]))
        assert not fits(tree, lambda a, b, c: torch.cat([a, b], 2))


def test_explain_counts_the_operands() -> None:
    text = said(Fork(CAT, nn.ReLU, nn.Tanh), lambda a, b, c: torch.cat([a, b, c], 1))

    assert "expected 2 computed operands, found 3" in text


@pytest.mark.parametrize("join", ["cat", 1.0, Input(), [nn.ReLU, nn.Tanh]])
def test_refuses_to_join_by_what_is_no_call(join: object) -> None:
    with pytest.raises(PatternError, match="a Fork joins its branches by a call"):
        Fork(join, Input(), Input())  # pyright: ignore[reportArgumentType]  # the mistake


def test_refuses_literals_among_the_branches() -> None:
    with pytest.raises(PatternError, match="write literals= in its join"):
        Fork(ATEN.cat.default, left=Input(), right=Input(), literals={"dim": 1})  # pyright: ignore[reportArgumentType]  # the mistake


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (Op(ATEN.cat.default, Input(), Input(), 1), "'tensors' is a list: write .x, y."),
        (Fork(ATEN.where.self, Input(), Input()), "aten.where.self joins 3 tensors: list the oth"),
        (Fork(ATEN.add.Tensor, nn.ReLU), "aten.add.Tensor joins 2 tensors: list the others"),
        (Chain(nn.ReLU, Fork(ATEN.add.Tensor, ..., nn.ReLU)), "a branch of its Fork holds `...`"),
    ],
)
def test_refuses_what_joins_too_few_or_too_many(tree: Tree, says: str) -> None:
    with pytest.raises(PatternError, match=says):
        require_matchable("p", tree)
