from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting import (
    Chain,
    Fork,
    Input,
    Literal,
    Maybe,
    Named,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Tree,
    Wildcard,
)
from embedl_deploy.rewriting.found import Found
from embedl_deploy.rewriting.operands import same_literal
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def find(tree: Tree, graph_module: GraphModule) -> list[PatternMatch]:
    class Rule(Pattern):
        phase = Phase.FUSION

    Rule.tree = tree
    found = (Rule().match(node, graph_module) for node in graph_module.graph.nodes)
    return [match for match in found if isinstance(match, PatternMatch)]


class AddWithAlpha(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(torch.relu(x), x, alpha=2)


class ReluThenScale(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * self.scale


class SameNameTwice(nn.Module):
    """``sigmoid(x) * x`` and ``sigmoid(x) * y``."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * torch.sigmoid(x), y * torch.sigmoid(x)


class KeywordLinear(nn.Module):
    """A call whose operands graph authors may spell by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, dim=-1)


def test_a_module_class_admits_its_subclasses() -> None:
    class OwnReLU(nn.ReLU): ...

    graph_module = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (ROW,))
    graph_module.set_submodule("1", OwnReLU())

    (match,) = find(Op(nn.ReLU), graph_module)

    assert match.root.target == "1"


def test_a_packet_admits_every_overload_and_an_overload_only_itself() -> None:
    graph_module = trace(ReluThenScale(0.5).eval(), (ROW,))

    assert len(find(Op(aten.mul), graph_module)) == 1
    assert len(find(Op(aten.mul.Tensor), graph_module)) == 1
    assert not find(Op(aten.mul.Scalar), graph_module)


def test_an_add_with_alpha_is_no_plain_add() -> None:
    graph_module = trace(AddWithAlpha().eval(), (ROW,))

    assert not find(Op(aten.add.Tensor), graph_module)
    assert not find(Op(aten.add.Tensor, Input(), Input()), graph_module)
    assert not find(Fork(aten.add.Tensor, Input(), Input()), graph_module)


def test_alpha_can_be_asked_for() -> None:
    graph_module = trace(AddWithAlpha().eval(), (ROW,))
    doubled = Op(aten.add.Tensor, literals={"alpha": 2})

    assert len(find(doubled, graph_module)) == 1
    assert len(find(Fork(doubled, Input(), Input()), graph_module)) == 1
    assert not find(Op(aten.add.Tensor, literals={"alpha": 3}), graph_module)


def test_a_literal_must_be_equal_and_of_the_same_kind() -> None:
    half = trace(ReluThenScale(0.5).eval(), (ROW,))
    one = trace(ReluThenScale(1).eval(), (ROW,))

    assert len(find(Op(aten.mul.Tensor, Input(), 0.5), half)) == 1
    assert not find(Op(aten.mul.Tensor, Input(), 0.25), half)
    assert not find(Op(aten.mul.Tensor, Input(), True), one)


def test_a_literal_is_captured() -> None:
    graph_module = trace(ReluThenScale(0.5).eval(), (ROW,))

    (match,) = find(Op(aten.mul.Tensor, Input(), Literal("scale")), graph_module)

    assert match.literal("scale") == 0.5
    with pytest.raises(PatternError, match=r"literal 'strength'; captured here: scale"):
        match.literal("strength")


def test_a_literal_is_never_a_node_and_a_node_never_a_literal() -> None:
    graph_module = trace(SameNameTwice().eval(), (ROW, ROW + 1))
    scaled = trace(ReluThenScale(0.5).eval(), (ROW,))

    assert not find(Op(aten.mul.Tensor, Input(), Literal("scale")), graph_module)
    assert not find(Op(aten.mul.Tensor, Input(), Input()), scaled)


def test_arguments_beyond_the_listed_ones_must_have_their_defaults() -> None:
    class Flatten(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.flatten(x, 1), torch.flatten(x, 0, 1)

    graph_module = trace(Flatten().eval(), (torch.randn(2, 3, 4),))

    (match,) = find(Op(aten.flatten.using_ints, Input(), Literal("start")), graph_module)

    assert match.literal("start") == 1


def test_operands_may_be_spelled_by_keyword() -> None:
    graph_module = trace(KeywordLinear().eval(), (ROW,))
    (node,) = graph_module.graph.find_nodes(op="call_function", target=aten.softmax.int)
    node.args, node.kwargs = (), {"self": node.args[0], "dim": -1}

    (match,) = find(Op(aten.softmax.int, Input(), -1), graph_module)

    assert [read.name for read in match.inputs] == ["x"]


def test_a_keyword_of_a_function_is_not_overlooked() -> None:
    def scale(x: Tensor, by: float = 1.0) -> Tensor:
        return x * by

    graph_module = trace(KeywordLinear().eval(), (ROW,))
    (node,) = graph_module.graph.find_nodes(op="call_function", target=aten.softmax.int)
    with graph_module.graph.inserting_after(node):
        graph_module.graph.call_function(scale, (node,), {"by": 2.0})

    assert not find(Op(scale, Input()), graph_module)
    assert len(find(Op(scale, Input(), literals={"by": 2.0}), graph_module)) == 1


def test_one_name_means_one_node() -> None:
    graph_module = trace(SameNameTwice().eval(), (ROW, ROW + 1))
    swish = Op(aten.mul.Tensor, Named("x", Input()), Op(nn.Sigmoid, Named("x", Input())))

    (match,) = find(swish, graph_module)

    assert match["x"].name == "x"
    assert len(match.nodes) == 2


def test_a_condition_on_the_node_is_asked() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).eval(), (ROW,))

    (match,) = find(Op(nn.Linear, where=lambda node: node.target == "1"), graph_module)

    assert match.root.target == "1"


def test_modules_and_functions_mix() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(4, 4), ReluThenScale(0.5)).eval(), (ROW,))

    (match,) = find(Op(aten.mul.Tensor, Op(nn.ReLU, Op(nn.Linear, Input())), 0.5), graph_module)

    assert len(match.nodes) == 3


def test_an_optional_operand_is_captured_where_it_is_there() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return torch.relu(x) - y, x - y

    graph_module = trace(Both().eval(), (ROW, ROW + 1))

    first, second = find(Op(aten.sub.Tensor, act=Maybe(nn.ReLU), other=Input()), graph_module)

    assert "act" in first
    assert "act" not in second


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(PatternError, match=r"got \{\} of type dict"):
        Chain(nn.Linear, {})  # pyright: ignore[reportArgumentType]  # what the test is about


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Op((nn.ReLU, nn.GELU)), "OneOf"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        (lambda: Chain(nn.Linear, Op(nn.ReLU())), "write ReLU"),
        (lambda: Wildcard(Op(nn.ReLU), "+"), "a node runs a"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
    ],
)
def test_a_target_that_no_node_runs_is_refused_at_once(
    build: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(PatternError, match=complaint):
        build()


def test_a_number_stands_for_the_list_of_it_alone() -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(-1)

    root = next(
        node
        for node in trace(Means(), (torch.ones(2, 3),)).graph.nodes
        if node.op == "call_function"
    )

    assert list(Op(aten.mean.dim, Input(), -1).match(root, Found()))
    assert list(Op(aten.mean.dim, literals={"dim": -1}).match(root, Found()))
    assert not list(Op(aten.mean.dim, Input(), 1).match(root, Found()))
    assert same_literal(2, [2])
    assert not same_literal(True, [1])
    assert not same_literal([1, 2], 1)


class ScaledMaybe(Pattern):
    """Reads a literal of an optional link unasked."""

    phase = Phase.FUSION
    tree = Chain(act=nn.ReLU, scale=Maybe(Op(aten.mul.Tensor, ..., Literal("factor"))))

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(
            aten.mul.Tensor, match["act"], float(str(match.literal("factor")))
        )


def test_says_that_what_is_asked_for_is_optional() -> None:
    graph_module = trace(nn.Sequential(nn.ReLU()).eval(), (ROW,))
    (root,) = graph_module.graph.find_nodes(op="call_module", target="0")
    match = ScaledMaybe().match(root, graph_module)

    assert isinstance(match, PatternMatch)
    with pytest.raises(PatternError, match="may be absent: test 'scale' in match first"):
        match.literal("factor")
    with pytest.raises(PatternError, match="may be absent: test 'scale' in match first"):
        match["scale"]
    with pytest.raises(PatternError, match=r"captured here: act$"):
        match["scales"]
