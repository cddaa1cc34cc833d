import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting import (
    Chain,
    Fork,
    Input,
    Maybe,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Tree,
    Wildcard,
)
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def at_end(tree: Tree, graph_module: GraphModule) -> PatternMatch | None:
    """Returns the match whose root is what the graph returns."""

    class Rule(Pattern):
        phase = Phase.FUSION

    Rule.tree = tree
    (output,) = graph_module.graph.find_nodes(op="output")
    found = Rule().match(output.all_input_nodes[0], graph_module)
    assert found is None or isinstance(found, PatternMatch)
    return found


def steps(*modules: nn.Module) -> GraphModule:
    return trace(nn.Sequential(*modules).eval(), (ROW,))


class Residual(nn.Module):
    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return x + y if self.swapped else y + x


def test_links_are_captured_by_name() -> None:
    match = at_end(
        Chain(first=nn.Linear, act=nn.ReLU), steps(nn.Linear(4, 4), nn.ReLU(), nn.Tanh())
    )
    assert match is None

    match = at_end(Chain(first=nn.Linear, act=nn.ReLU), steps(nn.Linear(4, 4), nn.ReLU()))

    assert match is not None
    assert (match["first"].target, match["act"].target) == ("0", "1")
    assert match.root is match["act"]
    assert [read.name for read in match.inputs] == ["input_1"]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_fork_takes_its_operands_in_either_order(swapped: bool) -> None:
    graph_module = trace(Residual(swapped).eval(), (ROW,))

    match = at_end(Chain(linear=nn.Linear, add=Fork(aten.add.Tensor, skip=Input())), graph_module)

    assert match is not None
    assert match["skip"].op == "placeholder"
    assert match["add"].target is aten.add.Tensor
    assert [node.name for node in match.nodes] == ["linear", "add"]


def test_a_fork_of_two_branches_consumes_both() -> None:
    class TwoBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x)) + self.b(x)

    graph_module = trace(TwoBranches().eval(), (ROW,))

    match = at_end(
        Fork(aten.add.Tensor, plain=nn.Linear, active=Chain(nn.Linear, nn.ReLU)), graph_module
    )

    assert match is not None
    assert match["plain"].target == "b"
    assert len(match.nodes) == 4


def test_an_add_of_a_value_to_itself_has_two_operands() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)
            return y + y

    graph_module = trace(Doubled().eval(), (ROW,))

    match = at_end(Chain(act=nn.ReLU, add=Fork(aten.add.Tensor, other=Input())), graph_module)

    assert match is not None
    assert match["other"] is match["act"]


@pytest.mark.parametrize(
    ("modules", "present"),
    [
        ((nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()), True),
        ((nn.Linear(4, 4), nn.ReLU()), False),
    ],
)
def test_a_link_in_the_middle_may_be_missing(modules: tuple[nn.Module, ...], present: bool) -> None:
    tree = Chain(linear=nn.Linear, norm=Maybe(nn.LayerNorm), act=nn.ReLU)

    match = at_end(tree, steps(*modules))

    assert match is not None
    assert ("norm" in match) is present


@pytest.mark.parametrize("present", [False, True])
def test_the_first_link_may_be_missing(present: bool) -> None:
    modules = [nn.Tanh()] if present else [nn.Sigmoid()]
    tree = Chain(before=Maybe(nn.Tanh), linear=nn.Linear)

    match = at_end(tree, steps(*modules, nn.Linear(4, 4)))

    assert match is not None
    assert ("before" in match) is present


@pytest.mark.parametrize("present", [False, True])
def test_the_last_link_may_be_missing(present: bool) -> None:
    modules = [nn.Linear(4, 4), *([nn.ReLU()] if present else [])]

    match = at_end(Chain(linear=nn.Linear, act=Maybe(nn.ReLU)), steps(*modules))

    assert match is not None
    assert ("act" in match) is present
    assert len(match.nodes) == len(modules)


def test_an_optional_link_is_sought_behind_both_operands() -> None:
    class ReluOnTheRight(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(x)

    graph_module = trace(ReluOnTheRight().eval(), (ROW,))

    match = at_end(Chain(act=Maybe(nn.ReLU), add=aten.add.Tensor), graph_module)

    assert match is not None
    assert "act" in match


def test_a_tuple_stands_for_alternatives() -> None:
    tree = Chain(linear=nn.Linear, act=(nn.ReLU, nn.Tanh, Op(aten.mul.Tensor, ..., 0.5)))

    for last in (nn.ReLU(), nn.Tanh()):
        match = at_end(tree, steps(nn.Linear(4, 4), last))
        assert match is not None
        assert len(match.nodes) == 2
    assert at_end(tree, steps(nn.Linear(4, 4), nn.Sigmoid())) is None


@pytest.mark.parametrize(
    ("quantifier", "run", "fits"),
    [
        ("?", 0, True),
        ("?", 1, True),
        ("?", 2, False),
        ("*", 0, True),
        ("*", 3, True),
        ("+", 0, False),
        ("+", 3, True),
        ("{2}", 1, False),
        ("{2}", 2, True),
        ("{2}", 3, False),
        ("{2,}", 1, False),
        ("{2,}", 4, True),
        ("{1,2}", 0, False),
        ("{1,2}", 2, True),
        ("{1,2}", 3, False),
    ],
)
def test_a_wildcard_takes_as_many_nodes_as_its_quantifier_says(
    quantifier: str, run: int, fits: bool
) -> None:
    graph_module = steps(nn.Linear(4, 4), *(nn.Dropout() for _ in range(run)), nn.ReLU())
    tree = Chain(linear=nn.Linear, between=Wildcard(nn.Dropout, quantifier), act=nn.ReLU)

    match = at_end(tree, graph_module)

    assert (match is not None) is fits
    if match is not None:
        assert ("between" in match) is (run > 0)
        assert len(match.nodes) == run + 2


def test_a_run_is_captured_in_graph_order() -> None:
    graph_module = steps(nn.Linear(4, 4), nn.Dropout(0.1), nn.Dropout(0.2), nn.ReLU())

    match = at_end(Chain(nn.Linear, drops=Wildcard(nn.Dropout), act=nn.ReLU), graph_module)

    assert match is not None
    assert [node.target for node in match.run("drops")] == ["1", "2"]


def test_a_wildcard_asks_its_condition() -> None:
    graph_module = steps(nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU())
    tree = Chain(nn.Linear, Wildcard(None, "+", where=lambda node: node.target == "9"), nn.ReLU)

    assert at_end(tree, graph_module) is None


@pytest.mark.parametrize("quantifier", ["", "2", "{0}", "{3,2}", "**", "{,2}"])
def test_a_quantifier_that_admits_nothing_is_refused(quantifier: str) -> None:
    with pytest.raises(PatternError, match="quantifier"):
        Wildcard(nn.ReLU, quantifier)


def test_trees_that_could_match_nothing_are_refused() -> None:
    with pytest.raises(PatternError, match="at least one link"):
        Chain()
    with pytest.raises(PatternError, match="at least one branch"):
        Fork(aten.add.Tensor)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    match = at_end(Chain(linear=nn.Linear), steps(nn.Linear(4, 4)))

    assert match is not None
    with pytest.raises(PatternError, match=r"asks its match for 'conv'; captured here: linear"):
        match.run("conv")
    with pytest.raises(PatternError, match=r"expects 'linear' to call a Conv2d, %\w+ calls Linear"):
        match.module("linear", nn.Conv2d)


def test_the_modules_of_a_run_come_in_graph_order() -> None:
    match = at_end(
        Chain(run=Wildcard((nn.Linear, nn.ReLU), "{2,}")),
        steps(nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
    )

    assert match is not None
    called = match.modules("run", nn.Module)
    assert [type(module) for module in called] == [nn.Linear, nn.ReLU, nn.Linear]
    assert match.module("run", nn.Linear) is called[-1]
    with pytest.raises(PatternError, match="expects 'run' to call a Linear, %_2 calls ReLU"):
        match.modules("run", nn.Linear)
