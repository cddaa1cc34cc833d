from collections.abc import Callable
from typing import Literal as OneOfThese

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph import module_of
from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import graph_module_of
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
    apply_patterns,
)
from embedl_deploy.rewriting.plan import make_plan
from embedl_deploy.rewriting.verify import Verifier
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
Harm = Callable[[Node], None]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gamma = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) * self.gamma)


def linear(node: Node) -> nn.Linear:
    module = module_of(node)
    assert isinstance(module, nn.Linear)
    return module


def zeroes_through_data(node: Node) -> None:
    linear(node).weight.data.zero_()


def zeroes_in_place(node: Node) -> None:
    with torch.no_grad():
        linear(node).weight.zero_()


def sets_an_attribute(node: Node) -> None:
    linear(node).in_features = 7


def swaps_a_parameter(node: Node) -> None:
    linear(node).bias = nn.Parameter(torch.ones(4))


def zeroes_what_another_node_reads(node: Node) -> None:
    (gamma,) = node.graph.find_nodes(op="get_attr")
    held = attribute_of(graph_module_of(node), str(gamma.target))
    assert isinstance(held, Tensor)
    held.data.zero_()


def redirects_an_argument(node: Node) -> None:
    (reader,) = node.users
    reader.args = (next(iter(node.graph.nodes)), *reader.args[1:])


def inserts_a_node(node: Node) -> None:
    with node.graph.inserting_after(node):
        node.graph.call_function(aten.neg.default, (node,))


RESTORABLE: list[tuple[Harm, str]] = [
    (sets_an_attribute, "second.in_features in place"),
    (swaps_a_parameter, "second.bias in place"),
    (redirects_an_argument, "the arguments or target of %mul"),
    (inserts_a_node, "the graph, where it inserted %neg"),
]
WEIGHTS: list[tuple[Harm, str]] = [
    (zeroes_through_data, "second.weight in place"),
    (zeroes_in_place, "second.weight in place"),
    (zeroes_what_another_node_reads, "gamma in place"),
]


def in_match(harm: Harm) -> Pattern:
    """Returns a rule whose own ``match`` does harm at the second linear layer."""

    class Harmful(Pattern):
        phase = Phase.FUSION
        tree = Op(nn.Linear)
        roots = (nn.Linear,)

        def match(self, root: Node, graph_module: GraphModule) -> PatternMatch | Refusal | None:
            if root.target == "second":
                harm(root)
            return super().match(root, graph_module)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(linear(match.root), *match.inputs)

    return Harmful()


def in_condition(harm: Harm) -> Pattern:
    """Returns a rule whose ``where=`` does harm at the second linear layer."""

    def condition(node: Node) -> bool:
        if node.target == "second":
            harm(node)
        return True

    class Harmful(Pattern):
        phase = Phase.FUSION
        tree = Chain(Input(), Op(nn.Linear, ..., where=condition))

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(linear(match.root), *match.inputs)

    return Harmful()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


def apart(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("made", [in_match, in_condition])
@pytest.mark.parametrize(("harm", "what"), [*RESTORABLE, *WEIGHTS])
def test_what_a_search_changes_is_put_back_and_named(
    model: nn.Module, made: Callable[[Harm], Pattern], harm: Harm, what: str
) -> None:
    graph_module, state = trace(model, (ROW,)), apart(model)
    wanted = graph_module(ROW)

    record = apply_patterns(graph_module, [made(harm)], verify=Verifier())
    graph_module.recompile()

    (refused,) = record.refused
    assert refused.site == "second"
    assert (refused.reason or "").startswith(f"match() or a where= condition changed {what}")
    assert [site.site for site in record.applied] == ["first"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(graph_module(ROW), wanted)


@pytest.mark.parametrize(("harm", "what"), RESTORABLE)
def test_without_verification_all_but_values_is_put_back(
    model: nn.Module, harm: Harm, what: str
) -> None:
    record = apply_patterns(trace(model, (ROW,)), [in_match(harm)])

    assert what in (record.refused[0].reason or "")


@pytest.mark.parametrize(("harm", "what"), WEIGHTS)
def test_without_verification_lost_values_are_an_error(
    model: nn.Module, harm: Harm, what: str
) -> None:
    with pytest.raises(PatternError, match=what.partition(" ")[0]) as caught:
        apply_patterns(trace(model, (ROW,)), [in_condition(harm)])
    assert "harmful changed" in str(caught.value)


@pytest.mark.parametrize("verify", [True, "raise"])
def test_the_users_model_keeps_its_weights(
    model: nn.Module, verify: bool | OneOfThese["raise"]
) -> None:
    state = apart(model)

    result = transform(model, (ROW,), patterns=[in_match(zeroes_through_data)], verify=verify)

    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert "second.weight in place" in str(result.report)


def test_a_node_erased_while_searching_is_an_error(model: nn.Module) -> None:
    def erases(node: Node) -> None:
        (reader,) = node.users
        reader.replace_all_uses_with(node)
        node.graph.erase_node(reader)

    with pytest.raises(PatternError, match=r"harmful erased %mul in match\(\)"):
        apply_patterns(trace(model, (ROW,)), [in_match(erases)])


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (zeroes_in_place, "second.weight in place"),
        (redirects_an_argument, "the graph itself, the arguments or target of %mul"),
    ],
)
def test_what_a_check_changes_is_told_of_the_check(model: nn.Module, harm: Harm, what: str) -> None:
    class Checked(Pattern):
        phase = Phase.FUSION
        tree = Op(nn.Linear, Input(), where=lambda node: node.target == "second")

        def check(self, match: PatternMatch) -> Refusal | None:
            harm(match.root)
            return None

        def replace(self, match: PatternMatch) -> Node:
            return match.root

    state = apart(model)
    record = apply_patterns(trace(model, (ROW,)), [Checked])

    assert (record.refused[0].reason or "").startswith(f"check() changed {what}")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_match_after_another_rewrite_is_watched_too(model: nn.Module) -> None:
    """A rule that does harm only when it is asked again, after its match was changed."""

    class Larger(Pattern):
        phase = Phase.FUSION
        tree = Chain(nn.Linear, Op(aten.mul.Tensor, ..., Input()))

        def replace(self, match: PatternMatch) -> Node:
            product = match.call_module(linear(match.first), match.inputs[0])
            return match.call_function(aten.mul.Tensor, product, match.inputs[1])

    asked: list[Node] = []

    class Later(Pattern):
        phase = Phase.FUSION
        roots = (nn.ReLU,)

        def match(self, root: Node, graph_module: GraphModule) -> PatternMatch | None:
            asked.append(root)
            if asked.count(root) > 1:
                root.args = (next(iter(root.graph.nodes)),)
            return PatternMatch.of(self, graph_module, root=root, nodes=[root])

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(nn.ReLU(), *match.inputs)

    graph_module = trace(model, (ROW,))
    wanted = graph_module(ROW)
    record = apply_patterns(graph_module, [Larger, Later])
    graph_module.recompile()

    reasons = [site.reason or "" for site in record.refused]
    assert any("changed the arguments or target of" in reason for reason in reasons)
    assert torch.equal(graph_module(ROW), wanted)


def test_plain_plans_of_harmless_rules_are_as_before(model: nn.Module) -> None:
    plan = make_plan(trace(model, (ROW,)), [in_match(lambda _: None)])

    assert [match.apply for match in plan.sites()] == [True, True]
