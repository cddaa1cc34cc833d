from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph import blame, graph_text, module_of, value_of
from embedl_deploy.rewriting import (
    Chain,
    Fork,
    Input,
    Literal,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
    apply_patterns,
)
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
Build = Callable[[PatternMatch], object]


def linear_relu() -> GraphModule:
    return trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Tanh()).eval(), (ROW,))


def replace_linear_relu(build: Build) -> Pattern:
    """Returns a rule that matches ``relu(linear(x))`` and replaces it the way ``build`` does."""

    class Rule(Pattern):
        phase = Phase.FUSION
        tree = Chain(linear=nn.Linear, act=nn.ReLU)
        name = "rule"

        def replace(self, match: PatternMatch) -> Node:
            return build(match)  # pyright: ignore[reportReturnType]  # wrong on purpose

    return Rule()


def names_of(graph_module: nn.Module, prefix: str = "") -> list[str]:
    inner = (names_of(child, f"{prefix}{name}.") for name, child in graph_module.named_children())
    own = [prefix + name for name, _ in graph_module.named_children()]
    return sum(inner, start=own)


def state(graph_module: GraphModule) -> tuple[str, list[str], list[str]]:
    return graph_text(graph_module), list(graph_module.state_dict()), names_of(graph_module)


def reads_what_is_gone(match: PatternMatch) -> Node:
    stranger = next(iter(linear_relu().graph.nodes))
    return match.call_function(aten.neg.default, stranger)


def raises_after_building(match: PatternMatch) -> Node:
    match.call_module(nn.Linear(4, 4), match.inputs[0])
    match.get_attr(nn.Parameter(torch.ones(4)), "scale")
    raise KeyError("weight")


def reads_what_comes_later(match: PatternMatch) -> Node:
    (later,) = match.root.users
    return match.call_function(aten.neg.default, later)


def takes_what_comes_later(match: PatternMatch) -> Node:
    (later,) = match.root.users
    return later


def inserts_by_hand(match: PatternMatch) -> Node:
    with match.root.graph.inserting_before(match.root):
        return match.root.graph.call_function(aten.neg.default, (match.inputs[0],))


def replaces_a_stranger(match: PatternMatch) -> dict[Node, Node]:
    (later,) = match.root.users
    return {match.root: match.inputs[0], later: match.inputs[0]}


def narrower(match: PatternMatch) -> Node:
    return match.call_module(nn.Linear(4, 3), match.inputs[0])


def wider_dtype(match: PatternMatch) -> Node:
    return match.call_function(aten.to.dtype, match.inputs[0], torch.float64)


def two_outputs(match: PatternMatch) -> Node:
    return match.call_function(aten.chunk.default, match.inputs[0], 2)


def does_not_run(match: PatternMatch) -> Node:
    return match.call_module(nn.Linear(5, 4), match.inputs[0])


def asks_for_an_unknown_name(match: PatternMatch) -> Node:
    return match["norm"]


def calls_a_name(match: PatternMatch) -> Node:
    return match.call_function("relu", match.inputs[0])


def returns_nothing(match: PatternMatch) -> None:
    del match


def returns_an_empty_map(match: PatternMatch) -> dict[Node, Node]:
    del match
    return {}


def returns_a_name(match: PatternMatch) -> dict[Node, str]:
    return {match.root: "relu"}


FAILURES: list[tuple[Build, str]] = [
    (raises_after_building, "replace() raised KeyError: 'weight'"),
    (returns_nothing, "must return the node that takes over the root, got NoneType"),
    (returns_an_empty_map, "must return a dict that holds the root, and %_1 is not in it"),
    (returns_a_name, "the replacement is no node of this graph"),
    (reads_what_is_gone, "which is gone"),
    (reads_what_comes_later, "which comes later"),
    (takes_what_comes_later, "which comes later"),
    (inserts_by_hand, "replace() changed the graph itself"),
    (replaces_a_stranger, "may only replace nodes that the match consumes"),
    (narrower, "the replacement yields float32[2, 3] where %_1 yields float32[2, 4]"),
    (wider_dtype, "the replacement yields float64[2, 4] where %_1 yields float32[2, 4]"),
    (two_outputs, "the replacement yields (float32[1, 4], float32[1, 4]) where"),
    (does_not_run, "the replacement does not run on the recorded shapes: RuntimeError"),
    (asks_for_an_unknown_name, "asks its match for 'norm'"),
    (calls_a_name, "must give call_function a function, got 'relu' of type str"),
]


@pytest.mark.parametrize(("build", "reason"), FAILURES)
def test_a_replacement_that_fails_is_refused_and_leaves_the_graph_alone(
    build: Build, reason: str
) -> None:
    graph_module = linear_relu()
    before = state(graph_module)

    record = apply_patterns(graph_module, [replace_linear_relu(build)])

    assert not record.applied
    (refused,) = record.refused
    assert refused.pattern == "rule"
    assert refused.site == "_1"
    assert reason in (refused.reason or "")
    assert state(graph_module) == before
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module(ROW)


def test_one_that_fails_does_not_stop_the_others() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).eval()
    graph_module = trace(model, (ROW,))

    def fail_at_first(match: PatternMatch) -> Node:
        if match["linear"].target == "0":
            raise ValueError("not here")
        return match.call_function(aten.relu.default, match["linear"])

    record = apply_patterns(graph_module, [replace_linear_relu(fail_at_first)])

    assert [site.site for site in record.applied] == ["_3"]
    assert [site.site for site in record.refused] == ["_1"]


@pytest.mark.parametrize("method", ["match", "check"])
def test_a_match_or_check_that_raises_is_refused_by_name(method: str) -> None:
    def fail(*given: object) -> Refusal | None:
        del given
        raise ZeroDivisionError("no heads")

    rule = replace_linear_relu(lambda match: match.inputs[0])
    setattr(type(rule), method, fail)
    if method == "match":
        type(rule).roots = (nn.ReLU,)

    record = apply_patterns(linear_relu(), [rule])

    (refused,) = record.refused
    assert refused.pattern == "rule"
    assert refused.reason is not None
    assert refused.reason.startswith("match() or check() raised ZeroDivisionError: no heads (")
    assert "test_rewriter.py:" in refused.reason


def test_a_match_that_returns_something_else_is_refused() -> None:
    def match_badly(*given: object) -> object:
        del given
        return True

    rule = replace_linear_relu(lambda match: match.inputs[0])
    setattr(type(rule), "match", match_badly)  # noqa: B010  # past the type checker

    record = apply_patterns(linear_relu(), [rule])

    assert "must return a match, a refusal or None, got True" in (record.refused[0].reason or "")


def test_building_in_check_is_refused() -> None:
    def build_early(_: Pattern, match: PatternMatch) -> Refusal | None:
        match.call_function(aten.neg.default, match.root)
        return None

    rule = replace_linear_relu(lambda match: match.inputs[0])
    setattr(type(rule), "check", build_early)  # noqa: B010  # past the type checker
    graph_module = linear_relu()
    before = state(graph_module)

    record = apply_patterns(graph_module, [rule])

    assert "builds nodes outside replace()" in (record.refused[0].reason or "")
    assert state(graph_module) == before


def test_erasing_by_hand_is_an_error_that_names_the_pattern() -> None:
    def erase(match: PatternMatch) -> Node:
        match.root.replace_all_uses_with(match["linear"])
        match.root.graph.erase_node(match.root)
        return match["linear"]

    with pytest.raises(PatternError, match=r"rule erased nodes itself in replace\(\) at %_1"):
        apply_patterns(linear_relu(), [replace_linear_relu(erase)])


def test_erasing_the_root_after_building_is_the_same_error() -> None:
    def erase(match: PatternMatch) -> Node:
        made = match.call_module(nn.SiLU(), *match.inputs)
        match.root.replace_all_uses_with(made)
        match.root.graph.erase_node(match.root)
        return made

    with pytest.raises(PatternError, match=r"rule erased nodes itself in replace\(\) at %_1"):
        apply_patterns(linear_relu(), [replace_linear_relu(erase)])


def rewire(match: PatternMatch) -> None:
    match.root.args = match["linear"].args


def rewire_reader(match: PatternMatch) -> None:
    match.root.replace_all_uses_with(match["linear"])


def other_target(match: PatternMatch) -> None:
    match.root.target = match["linear"].target


CHANGES = [rewire, rewire_reader, other_target]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("then", ["raises", "returns"])
def test_a_replace_that_changes_the_graph_is_taken_back(
    change: Callable[[PatternMatch], None], then: str
) -> None:
    def build(match: PatternMatch) -> Node:
        change(match)
        if then == "raises":
            raise ValueError("oops")
        return match.call_module(nn.SiLU(), *match.inputs)

    graph_module = linear_relu()
    before, expected = state(graph_module), graph_module(ROW)

    record = apply_patterns(graph_module, [replace_linear_relu(build)])

    graph_module.recompile()
    assert "replace() changed the graph itself" in (record.refused[0].reason or "")
    assert state(graph_module) == before
    assert torch.equal(graph_module(ROW), expected)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("answer", [None, Refusal("no")])
def test_a_check_that_changes_the_graph_is_taken_back(
    change: Callable[[PatternMatch], None], answer: Refusal | None
) -> None:
    def check(_: Pattern, match: PatternMatch) -> Refusal | None:
        change(match)
        return answer

    rule = replace_linear_relu(lambda match: match.call_module(nn.SiLU(), *match.inputs))
    setattr(type(rule), "check", check)  # noqa: B010  # past the type checker
    graph_module = linear_relu()
    before = state(graph_module)

    record = apply_patterns(graph_module, [rule])

    assert "check() changed the graph itself" in (record.refused[0].reason or "")
    assert state(graph_module) == before


def test_a_check_that_changes_a_layer_is_taken_back() -> None:
    def check(_: Pattern, match: PatternMatch) -> Refusal | None:
        match.module("linear", nn.Linear).register_parameter("bias", None)
        raise ValueError("oops")

    rule = replace_linear_relu(lambda match: match.call_module(nn.SiLU(), *match.inputs))
    setattr(type(rule), "check", check)  # noqa: B010  # past the type checker
    graph_module = linear_relu()
    expected = graph_module(ROW)

    record = apply_patterns(graph_module, [rule])

    assert "raised ValueError: oops" in (record.refused[0].reason or "")
    assert torch.equal(graph_module(ROW), expected)


def test_patterns_that_cannot_match_are_refused_at_once() -> None:
    class NoTree(Pattern):
        phase = Phase.FUSION

    class OnlyALiteral(Pattern):
        phase = Phase.FUSION
        tree = Literal("scale")

    class NoPhase(Pattern):
        tree = Chain(nn.ReLU)

    for rule, reason in (
        (NoTree, "no-tree has no tree"),
        (OnlyALiteral, "the tree of only-a-literal cannot match anything"),
        (NoPhase, "no-phase has no phase"),
    ):
        with pytest.raises(PatternError, match=reason):
            apply_patterns(linear_relu(), [rule])


def test_a_pattern_that_says_nothing_to_put_there_is_refused() -> None:
    class NoReplacement(Pattern):
        phase = Phase.FUSION
        tree = Chain(nn.ReLU)

    record = apply_patterns(linear_relu(), [NoReplacement])

    assert "says nothing to put there: define replace() or graft" in str(record.refused[0])


def test_new_nodes_carry_metadata_and_history() -> None:
    graph_module = linear_relu()
    source = next(iter(graph_module.graph.find_nodes(op="call_module", target="0")))
    path = source.meta["nn_module_stack"]

    record = apply_patterns(
        graph_module,
        [replace_linear_relu(lambda match: match.call_function(aten.neg.default, match.inputs[0]))],
    )

    (made,) = graph_module.graph.find_nodes(op="call_function", target=aten.neg.default)
    assert record.applied[0].made == made.name
    assert made.meta["nn_module_stack"] == path
    value = value_of(made)
    assert isinstance(value, Tensor)
    assert (value.shape, value.dtype) == ((2, 4), torch.float32)
    (rewrite,) = blame(made).rewrites
    assert (rewrite.pattern, rewrite.stage) == ("rule", "fusion")
    assert [origin.name for origin in rewrite.consumed] == ["_0", "_1"]


def test_a_new_module_follows_the_training_flag_of_the_graph() -> None:
    graph_module = linear_relu()

    apply_patterns(
        graph_module,
        [replace_linear_relu(lambda match: match.call_module(nn.Dropout(), match.inputs[0]))],
    )

    assert not graph_module.training
    assert not graph_module.get_submodule("dropout").training


def test_names_are_free_and_belong_to_the_container_of_the_match() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.tanh = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(self.tanh(x)))

    model = nn.Sequential(Block(), Block()).eval()
    graph_module = trace(model, (ROW,))
    rule = replace_linear_relu(lambda match: match.call_module(nn.Tanh(), match.inputs[0]))

    apply_patterns(graph_module, [rule])

    calls = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    assert targets == ["0.tanh", "0.tanh_1", "1.tanh", "1.tanh_1"]


def test_a_module_passed_twice_is_registered_once_and_so_is_a_tensor() -> None:
    shared, scale = nn.Tanh(), nn.Parameter(torch.ones(4))

    def build(match: PatternMatch) -> Node:
        value = match.call_module(shared, match.inputs[0])
        weight = match.get_attr(scale, "scale")
        return match.call_function(aten.mul.Tensor, value, weight)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).eval()
    graph_module = trace(model, (ROW,))

    record = apply_patterns(graph_module, [replace_linear_relu(build)])

    assert len(record.applied) == 2
    called = [module_of(node) for node in graph_module.graph.nodes if node.op == "call_module"]
    assert called == [shared, shared]
    assert [name for name, _ in graph_module.named_parameters()] == ["scale"]


class Pair(Pattern):
    """Two linear layers on one input run as one; both results are read from outside."""

    phase = Phase.FUSION
    tree = Fork(aten.add.Tensor, Chain(left=nn.Linear), Chain(right=nn.Linear))
    outputs = ("left", "right")

    def replace(self, match: PatternMatch) -> dict[Node, Node]:
        left = match.call_module(match.module("left", nn.Linear), *match["left"].args)
        right = match.call_module(match.module("right", nn.Linear), *match["right"].args)
        both = match.call_function(aten.add.Tensor, left, right)
        return {match["left"]: left, match["right"]: right, match.root: both}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        first = self.a(x)
        early = torch.tanh(first)
        second = self.b(torch.sin(y))
        return first + second, early * second


def test_a_match_may_have_several_outputs() -> None:
    model = TwoHeads().eval()
    other = ROW + 1
    graph_module = trace(model, (ROW, other))

    record = apply_patterns(graph_module, [Pair])

    assert len(record.applied) == 1, record.refused
    graph_module.graph.lint()
    graph_module.recompile()
    for found, wanted in zip(graph_module(ROW, other), model(ROW, other), strict=True):
        assert torch.equal(found, wanted)


def test_several_outputs_that_depend_on_each_other_are_refused() -> None:
    class Feedback(TwoHeads):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            first = self.a(x)
            second = self.b(torch.tanh(first) + y)
            return first + second, second

    graph_module = trace(Feedback().eval(), (ROW, ROW + 1))
    before = state(graph_module)

    record = apply_patterns(graph_module, [Pair])

    assert not record.applied
    assert "cannot run as one" in (record.refused[0].reason or "")
    assert state(graph_module) == before


def test_an_output_without_a_replacement_is_refused() -> None:
    class Forgetful(Pair):
        def replace(self, match: PatternMatch) -> dict[Node, Node]:
            return {match.root: super().replace(match)[match.root]}

    graph_module = trace(TwoHeads().eval(), (ROW, ROW + 1))

    record = apply_patterns(graph_module, [Forgetful])

    assert "returns nothing that takes its place" in (record.refused[0].reason or "")


def test_a_kept_node_needs_no_replacement() -> None:
    class KeepLeft(Pattern):
        phase = Phase.FUSION
        tree = Chain(left=nn.Linear, tanh=nn.Tanh)
        outputs = ("left",)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_function(aten.tanh.default, match["left"])

    model = TwoHeads().eval()
    graph_module = trace(model, (ROW, ROW + 1))

    record = apply_patterns(graph_module, [KeepLeft])

    assert len(record.applied) == 1
    graph_module.recompile()
    assert torch.equal(graph_module(ROW, ROW + 1)[1], model(ROW, ROW + 1)[1])


def test_equal_calls_get_equal_values_and_different_settings_do_not_mix() -> None:
    class Take(nn.Module):
        """Its ``repr`` does not say how many columns it takes."""

        def __init__(self, columns: int) -> None:
            super().__init__()
            self.columns = [columns]

        def forward(self, x: Tensor) -> Tensor:
            return x[:, : self.columns[0]]

    def build(match: PatternMatch) -> Node:
        width = 2 if match["linear"].target == "0" else 4
        part = match.call_module(Take(width), match.inputs[0])
        again = [part] * (4 // width)
        return match.call_function(aten.cat.default, again, 1)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).eval()
    graph_module = trace(model, (ROW,))

    record = apply_patterns(graph_module, [replace_linear_relu(build)])

    assert len(record.applied) == 2, record.refused


def test_reads_of_parameters_may_be_matched() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((4,), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    class FoldIntoBuffer(Pattern):
        phase = Phase.FUSION
        tree = Fork(aten.mul.Tensor, scale=Input(lambda node: node.op == "get_attr"), x=Input())

        def replace(self, match: PatternMatch) -> Node:
            scale = match.graph_module.get_parameter(str(match["scale"].target))
            doubled = match.get_attr(nn.Parameter(scale * 2), "doubled", replaces=("scale",))
            half = match.call_function(aten.div.Tensor, match["x"], 2)
            return match.call_function(aten.mul.Tensor, half, doubled)

    model = Scaled().eval()
    graph_module = trace(model, (ROW,))

    record = apply_patterns(graph_module, [FoldIntoBuffer])

    assert len(record.applied) == 1, record.refused
    graph_module.recompile()
    torch.testing.assert_close(graph_module(ROW), model(ROW))
    assert not [node for node in graph_module.graph.nodes if node.target == "scale"]
