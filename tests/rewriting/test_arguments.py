import copy
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph import graph_text
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Named,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
    apply_patterns,
)
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
Build = Callable[[PatternMatch], Node]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1 = nn.Linear(4, 4)
        self.gamma = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc1(x) * self.gamma


def rule_that(build: Build) -> Pattern:
    class Rule(Pattern):
        phase = Phase.FUSION
        tree = Chain(fc1=nn.Linear, mul=Op(aten.mul.Tensor, ..., Named("gamma", Input())))

        def replace(self, match: PatternMatch) -> Node:
            return build(match)

    return Rule()


def linear_of(match: PatternMatch) -> nn.Linear:
    return match.module("fc1", nn.Linear)


def scaled_by(match: PatternMatch, scale: object) -> Node:
    product = match.call_module(linear_of(match), *match["fc1"].args)
    return match.call_function(aten.mul.Tensor, product, scale)  # pyright: ignore[reportArgumentType]  # wrong on purpose


def wrong_module(module: object) -> Build:
    return lambda match: match.call_module(module, *match.inputs)  # pyright: ignore[reportArgumentType]  # wrong on purpose


def wrong_name(name: str) -> Build:
    return lambda match: scaled_by(match, match.get_attr(torch.ones(4), name))


FAULTS: list[tuple[Build, str]] = [
    (wrong_module(nn.Hardsigmoid), "got the class Hardsigmoid itself: make one, Hardsigmoid(…)"),
    (wrong_module("fc1"), "got 'fc1' of type str: the one that a captured node calls is "),
    (wrong_module(None), "must give call_module a module, got None of type NoneType"),
    (lambda match: scaled_by(match, torch.ones(4)), "call_function a tensor of shape [4]"),
    (lambda match: scaled_by(match, [nn.Parameter(torch.ones(4))]), "a tensor of shape [4]"),
    (lambda match: scaled_by(match, nn.ReLU()), "call_function the module ReLU"),
    (
        lambda match: match.call_module(nn.ReLU(), torch.ones(4)),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        "call_module a tensor of shape [4] as an argument",
    ),
    (
        lambda match: match.call_function(torch.neg, match["fc1"]),
        "call_function torch.neg, a function of torch, and this graph runs overloads, which is "
        "what patterns and engines look for: write torch.ops.aten.neg.default",
    ),
    (
        lambda match: match.call_function(aten.neg, match["fc1"]),
        "call_function torch.ops.aten.neg, an op without its overload",
    ),
    (wrong_name("a b-"), "must give get_attr a name like a variable's, got 'a b-'"),
    (
        lambda match: match.get_attr("gamma", "gamma"),  # pyright: ignore[reportArgumentType]  # wrong on purpose
        "must give get_attr a tensor, got 'gamma' of type str",
    ),
    (
        lambda match: match.call_module(match.module("gamma", nn.Linear), match["fc1"]),
        "expects 'gamma' to call a Linear, %gamma reads gamma: match.parameter('gamma') is the",
    ),
    (
        lambda match: scaled_by(match, match.get_attr(match.parameter("fc1"), "fc")),
        "expects 'fc1' to read a parameter or buffer, %fc1 calls Linear: match.module('fc1', …)",
    ),
]


@pytest.mark.parametrize(("build", "reason"), FAULTS)
def test_what_cannot_be_built_with_is_a_fault_of_the_rule_at_its_site(
    build: Build, reason: str
) -> None:
    graph_module = trace(Scaled().eval(), (ROW,))
    text = graph_text(graph_module)

    record = apply_patterns(graph_module, [rule_that(build)])

    (refused,) = record.refused
    assert (refused.reason or "").startswith("replace() raised PatternError: rule ")
    assert reason in (refused.reason or "")
    assert graph_text(graph_module) == text


def test_functions_of_torch_stay_possible_in_a_graph_of_them() -> None:
    class Negate(Pattern):
        phase = Phase.FUSION
        tree = Chain(act=nn.ReLU)

        def replace(self, match: PatternMatch) -> Node:
            negated = match.call_function(torch.neg, match.inputs[0])
            return match.call_function(torch.neg, match.call_module(nn.ReLU(), negated))

    result = transform(nn.Sequential(nn.ReLU()).eval(), (ROW,), patterns=[Negate], tracer="fx")

    assert result.report.applied_count == 1


def test_a_graft_that_returns_a_class_is_a_fault() -> None:
    class Activation(Pattern):
        phase = Phase.FUSION
        tree = Chain(act=nn.ReLU)
        graft = staticmethod(lambda: nn.Hardsigmoid)  # pyright: ignore[reportAssignmentType]  # wrong on purpose

    model = nn.Sequential(nn.ReLU()).eval()
    result = transform(model, (ROW,), patterns=[Activation])

    (refused,) = result.report.refusals()
    assert "graft of activation must return a module, got <class" in (refused.reason or "")


def narrowed(match: PatternMatch) -> Node:
    """Splits the layer's weight in two, as computed tensors."""
    layer = linear_of(match)
    (x,) = match["fc1"].args
    halves = [
        match.get_attr(layer.weight[:2], "upper", ("fc1.weight",)),
        match.get_attr(layer.weight[2:], "lower", ("fc1.weight",)),
    ]
    parts = [match.call_function(aten.linear.default, x, half) for half in halves]
    joined = match.call_function(aten.cat.default, parts, -1)
    whole = match.call_function(aten.add.Tensor, joined, match.get_attr(layer.bias, "bias"))
    return match.call_function(aten.mul.Tensor, whole, match["gamma"])


def test_a_computed_weight_becomes_a_parameter_that_trains_loads_and_copies() -> None:
    model = Scaled().eval()
    other = Scaled().eval()
    nn.init.uniform_(other.fc1.weight)

    result = transform(model, (ROW,), patterns=[rule_that(narrowed)], verify="raise")

    rewritten = result.model
    parameters = dict(rewritten.named_parameters())
    assert {"upper", "lower"} <= parameters.keys()
    assert parameters["upper"].is_leaf
    assert parameters["upper"].requires_grad
    assert torch.equal(copy.deepcopy(rewritten)(ROW), rewritten(ROW))
    before = model.fc1.weight.clone()
    rewritten(ROW).square().sum().backward()
    torch.optim.SGD([parameters["upper"]], lr=1.0).step()
    assert not torch.allclose(rewritten(ROW), model(ROW))
    assert torch.equal(model.fc1.weight, before)
    result.load_state_dict(other.state_dict())
    torch.testing.assert_close(rewritten(ROW), other(ROW))


def test_other_tensors_become_buffers() -> None:
    def build(match: PatternMatch) -> Node:
        return scaled_by(match, match.get_attr(match.parameter("gamma").detach() * 1, "fixed"))

    graph_module = trace(Scaled().eval(), (ROW,))
    apply_patterns(graph_module, [rule_that(build)])

    assert "fixed" in dict(graph_module.named_buffers())


def test_the_tensor_behind_a_captured_parameter() -> None:
    model = Scaled().eval()
    seen: list[Tensor] = []

    def build(match: PatternMatch) -> Node:
        seen.append(match.parameter("gamma"))
        return scaled_by(match, match["gamma"])

    apply_patterns(trace(model, (ROW,)), [rule_that(build)])

    assert seen[0] is model.gamma


@pytest.mark.parametrize("capture", ["relu", ("relu",), None])
def test_a_match_by_hand_holds_nodes(capture: object) -> None:
    class ByHand(Pattern):
        phase = Phase.FUSION
        roots = (nn.Linear,)

        def match(self, root: Node, graph_module: GraphModule) -> PatternMatch:
            given = cast("dict[str, Node]", {"x": capture})
            return PatternMatch.of(self, graph_module, root=root, nodes=[root], captures=given)

    record = apply_patterns(trace(Scaled().eval(), (ROW,)), [ByHand])

    reason = record.refused[0].reason or ""
    assert "by-hand must give PatternMatch.of nodes of the graph, got" in reason
    assert "as captures['x']" in reason


@pytest.mark.parametrize("given", [("no", "q"), (None, "no"), (7,)])
def test_a_refusal_is_words_and_a_node(given: tuple[object, ...]) -> None:
    with pytest.raises(PatternError, match="a Refusal takes a reason in words, then a node"):
        Refusal(*given)  # pyright: ignore[reportArgumentType]  # wrong on purpose
