import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph import TransposedLinear, graph_text, record_of, value_of
from embedl_deploy.patterns.fusion import (
    FuseConvNorm,
    FuseConvNormActivation,
    FuseConvNormAdd,
    FuseConvNormAddActivation,
    FuseLinearActivation,
)
from embedl_deploy.rewriting import (
    Chain,
    Fork,
    Input,
    Maybe,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
    apply_patterns,
)
from embedl_deploy.testing import randomize
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class LinearReLU(nn.Module):
    """What the rules of this file put into graphs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


class FuseLinearReLU(Pattern):
    phase = Phase.FUSION
    tree = Chain(linear=nn.Linear, act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        linear = match.module("linear", nn.Linear)
        return match.call_module(LinearReLU(linear), *match["linear"].args)


class FuseAnyLinear(Pattern):
    """Takes less than ``FuseLinearReLU`` where both fit."""

    phase = Phase.FUSION
    tree = Chain(linear=nn.Linear)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(
            torch.ops.aten.neg.default,
            match.call_function(torch.ops.aten.neg.default, match.root),
        )


class RemoveTanh(Pattern):
    phase = Phase.CONVERSION
    tree = Chain(tanh=nn.Tanh)

    def replace(self, match: PatternMatch) -> Node:
        return match.inputs[0]


class ReplaceReLUWithSigmoid(Pattern):
    phase = Phase.CONVERSION
    tree = Chain(act=nn.ReLU)
    graft = nn.Sigmoid


class ReplaceSigmoidWithReLU(Pattern):
    phase = Phase.CONVERSION
    tree = Chain(act=nn.Sigmoid)
    graft = nn.ReLU


def relu_and_half(x: Tensor) -> Tensor:
    return torch.relu(x) + 0.5


def run(graph_module: GraphModule, x: Tensor) -> Tensor:
    graph_module.recompile()
    graph_module.graph.lint()
    return graph_module(x)


def test_rewrites_every_site_and_keeps_the_output() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).eval()
    graph_module = trace(model, (ROW,))

    record = apply_patterns(graph_module, [FuseLinearReLU])

    assert [site.pattern for site in record.applied] == ["fuse-linear-re-lu"] * 2
    assert not record.refused
    assert torch.equal(run(graph_module, ROW), model(ROW))


def test_the_larger_match_goes_first() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (ROW,))

    record = apply_patterns(graph_module, [FuseAnyLinear, FuseLinearReLU])

    assert [site.pattern for site in record.applied] == ["fuse-linear-re-lu"]
    (refused,) = record.refused
    assert refused.pattern == "fuse-any-linear"
    assert refused.reason == "%_0 was changed by fuse-linear-re-lu at %_1"


def test_ties_go_by_graph_order() -> None:
    class FuseNeighbours(Pattern):
        phase = Phase.FUSION
        tree = Chain(first=nn.ReLU, second=nn.ReLU)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(nn.ReLU(), *match.inputs)

    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()).eval()
    graph_module = trace(model, (ROW,))
    names = [node.name for node in graph_module.graph.nodes if node.op == "call_module"]

    record = apply_patterns(graph_module, [FuseNeighbours])

    # The third overlaps the first; matched again it takes what the first made.
    assert record.applied[0].nodes == (names[0], names[1])
    assert record.applied[1].site == names[2]


def test_ties_at_one_node_go_by_the_order_of_the_patterns() -> None:
    class AlsoFuseLinearReLU(FuseLinearReLU): ...

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()

    for first, second in (
        (FuseLinearReLU, AlsoFuseLinearReLU),
        (AlsoFuseLinearReLU, FuseLinearReLU),
    ):
        record = apply_patterns(trace(model, (ROW,)), [first, second])
        assert [site.pattern for site in record.applied] == [first.name]
        assert [site.pattern for site in record.refused] == [second.name]


def test_refuses_a_node_that_something_else_reads() -> None:
    class ReadTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return torch.relu(y) * y

    graph_module = trace(ReadTwice().eval(), (ROW,))
    before = graph_text(graph_module)

    record = apply_patterns(graph_module, [FuseLinearReLU])

    assert not record.applied
    assert record.refused[0].reason == "%linear (call_module linear) is also used by %mul"
    assert graph_text(graph_module) == before


def test_what_an_earlier_rewrite_reads_is_matched_again() -> None:
    """A rewrite that reads further up than its match gives that node another reader."""

    class ReadFurtherUp(Pattern):
        phase = Phase.FUSION
        tree = Chain(nn.GELU, nn.Tanh, nn.Sigmoid)

        def replace(self, match: PatternMatch) -> Node:
            further = match.inputs[0].all_input_nodes[0]
            return match.call_function(aten.sigmoid.default, further)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Sigmoid())

    class Both(nn.Module):
        """The ReLU has another reader, so that it lives on."""

        def __init__(self) -> None:
            super().__init__()
            self.steps = model

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.steps[1](self.steps[0](x))
            return self.steps[4](self.steps[3](self.steps[2](y))), y

    graph_module = trace(Both().eval(), (ROW,))

    record = apply_patterns(graph_module, [FuseLinearReLU, ReadFurtherUp])

    assert [site.pattern for site in record.applied] == ["read-further-up"]
    (refused,) = record.refused
    assert "is also used by %sigmoid" in (refused.reason or "")


def test_conversions_run_until_nothing_fits() -> None:
    class MergeTwoTanhs(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(nn.Tanh, nn.Tanh)
        graft = nn.Tanh

    graph_module = trace(nn.Sequential(*(nn.Tanh() for _ in range(9))).eval(), (ROW,))

    record = apply_patterns(graph_module, [MergeTwoTanhs], until_fixpoint=True)

    assert len(record.applied) == 8
    assert not record.refused
    assert len(graph_module.graph.find_nodes(op="call_module", target="tanh")) <= 1


def test_a_refusal_that_a_later_round_lifts_is_no_longer_listed() -> None:
    class RemoveTanhAfterLinear(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(tanh=nn.Tanh)

        def check(self, match: PatternMatch) -> Refusal | None:
            below = {reader.op for reader in match.root.users}
            return None if below == {"output"} else Refusal("it is not the last one", match.root)

        def replace(self, match: PatternMatch) -> Node:
            return match.inputs[0]

    graph_module = trace(nn.Sequential(nn.Tanh(), nn.Tanh()).eval(), (ROW,))

    record = apply_patterns(graph_module, [RemoveTanhAfterLinear], until_fixpoint=True)

    assert len(record.applied) == 2
    assert not record.refused


def test_two_patterns_that_undo_each_other_are_named() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (ROW,))

    with pytest.raises(PatternError) as caught:
        apply_patterns(
            graph_module, [ReplaceReLUWithSigmoid, ReplaceSigmoidWithReLU], until_fixpoint=True
        )

    message = str(caught.value)
    assert "'replace-sigmoid-with-re-lu' and 'replace-re-lu-with-sigmoid' undo" in message
    assert "check() that declines" in message


def test_a_pattern_that_reads_what_it_replaces_is_told_so() -> None:
    class ReluOfRelu(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(act=nn.ReLU)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(nn.Sigmoid(), match.root)

    graph_module = trace(nn.Sequential(nn.ReLU()).eval(), (ROW,))

    with pytest.raises(PatternError, match=r"reads the node that it replaces.*match\.inputs"):
        apply_patterns(graph_module, [ReluOfRelu], until_fixpoint=True)


def test_a_pattern_that_feeds_on_itself_is_named() -> None:
    class DoubleReLU(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(act=nn.ReLU)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(nn.ReLU(), *match.inputs)

    graph_module = trace(nn.Sequential(nn.ReLU()).eval(), (ROW,))

    with pytest.raises(PatternError, match=r"'double-re-lu' never comes to an end"):
        apply_patterns(graph_module, [DoubleReLU], until_fixpoint=True)


def test_an_add_may_be_one_match_and_the_input_of_another() -> None:
    """A report against another compiler, whose order came from ``id()``: it crashed at times."""

    class Report(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, r: Tensor) -> Tensor:
            return torch.sigmoid(self.linear(x) + torch.log(r / (1 - r)))

    class FuseLinearAdd(Pattern):
        phase = Phase.FUSION
        tree = Chain(linear=nn.Linear, add=Fork(aten.add.Tensor, other=Input()))

        def replace(self, match: PatternMatch) -> Node:
            return match.call_function(aten.add.Tensor, match["other"], match["linear"])

    class FuseAddSigmoid(Pattern):
        phase = Phase.FUSION
        tree = Chain(add=aten.add.Tensor, act=nn.Sigmoid)

        def replace(self, match: PatternMatch) -> Node:
            added = match.call_function(aten.add.Tensor, *match["add"].args)
            return match.call_function(aten.sigmoid.default, added)

    class FuseLogit(Pattern):
        phase = Phase.FUSION
        tree = Chain(
            div=Op(aten.div.Tensor, r=Input(), rest=Op(aten.rsub.Scalar, Input(), 1)),
            log=aten.log.default,
        )

        def replace(self, match: PatternMatch) -> Node:
            return match.call_function(aten.logit.default, match["r"])

    model = Report().eval()
    ratio = torch.full((2, 4), 0.3)
    for rules in (
        [FuseLinearAdd, FuseAddSigmoid, FuseLogit],
        [FuseAddSigmoid, FuseLogit, FuseLinearAdd],
    ):
        graph_module = trace(model, (ROW, ratio))
        record = apply_patterns(graph_module, rules)
        graph_module.recompile()
        torch.testing.assert_close(graph_module(ROW, ratio), model(ROW, ratio))
        assert len(record.applied) == 3
        assert "aten.logit.default" in graph_text(graph_module)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_add_is_fused_in_either_operand_order(swapped: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return torch.relu(x + y if swapped else y + x)

    model = randomize(Block().eval())
    graph_module = trace(model, (IMAGE,))
    rules = [FuseConvNorm, FuseConvNormAdd, FuseConvNormAddActivation, FuseConvNormActivation]

    record = apply_patterns(graph_module, rules)

    assert [site.pattern for site in record.applied] == ["fuse-conv-norm-add-activation"]
    torch.testing.assert_close(run(graph_module, IMAGE), model(IMAGE))


def test_one_convolution_called_twice_with_two_norms() -> None:
    class TwoNorms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.conv(x)) - self.b(self.conv(2 * x))

    model = randomize(TwoNorms().eval())
    graph_module = trace(model, (IMAGE,))

    record = apply_patterns(graph_module, [FuseConvNorm])

    assert len(record.applied) == 2
    called = [node.target for node in graph_module.graph.find_nodes(op="call_module", target="x")]
    assert not called
    targets = {node.target for node in graph_module.graph.nodes if node.op == "call_module"}
    assert len(targets) == 2
    torch.testing.assert_close(run(graph_module, IMAGE), model(IMAGE))
    assert set(graph_module.state_dict()) == set(model.state_dict())


def test_a_linear_layer_written_as_addmm_with_a_transposed_weight() -> None:
    class Addmm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.addmm(self.bias, x, self.weight))

    model = Addmm().eval()
    graph_module = trace(model, (ROW,))
    kinds = {type(module) for module in graph_module.modules()}

    record = apply_patterns(graph_module, [FuseLinearActivation])

    assert TransposedLinear in kinds
    assert len(record.applied) == 1
    torch.testing.assert_close(run(graph_module, ROW), model(ROW))


def test_shared_modules_and_tied_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.second(torch.relu(self.first(torch.relu(self.first(x))))))

    model = Tied().eval()
    graph_module = trace(model, (ROW,))

    record = apply_patterns(graph_module, [FuseLinearActivation])

    assert len(record.applied) == 3
    assert set(graph_module.state_dict()) == set(model.state_dict())
    parameters = dict(graph_module.named_parameters())
    assert {id(value) for value in parameters.values()} == {id(p) for p in model.parameters()}
    torch.testing.assert_close(run(graph_module, ROW), model(ROW))


def test_a_module_that_nothing_calls_any_more_is_dropped_and_its_keys_are_mapped() -> None:
    class RemoveLinear(Pattern):
        phase = Phase.FUSION
        tree = Chain(linear=nn.Linear)

        def replace(self, match: PatternMatch) -> Node:
            return match.inputs[0]

    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval()
    graph_module = trace(model, (ROW,))

    apply_patterns(graph_module, [RemoveLinear])

    assert graph_module.get_submodule("1")
    assert not hasattr(graph_module, "0")
    assert record_of(graph_module).key_map == {"0.weight": (), "0.bias": ()}


def test_a_module_that_is_still_called_elsewhere_is_kept() -> None:
    class CalledTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.tanh(self.linear(x)))

    class RemoveLinearBeforeTanh(Pattern):
        phase = Phase.FUSION
        tree = Chain(linear=nn.Linear, tanh=nn.Tanh)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(match.module("tanh", nn.Tanh), *match.inputs)

    graph_module = trace(CalledTwice().eval(), (ROW,))

    record = apply_patterns(graph_module, [RemoveLinearBeforeTanh])

    assert len(record.applied) == 1
    assert set(graph_module.state_dict()) == {"linear.weight", "linear.bias"}


def test_a_module_that_one_rewrite_made_and_another_consumed_is_dropped() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (ROW,))

    class RemoveSigmoid(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(act=nn.Sigmoid)

        def replace(self, match: PatternMatch) -> Node:
            return match.inputs[0]

    apply_patterns(graph_module, [ReplaceReLUWithSigmoid, RemoveSigmoid], until_fixpoint=True)

    assert [name for name, _ in graph_module.named_children()] == ["0"]


def test_keys_of_new_parameters_are_followed_through_two_rewrites() -> None:
    class ScaleWeight(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(linear=Op(nn.Linear, where=lambda node: node.target == "0"))

        def replace(self, match: PatternMatch) -> Node:
            weight = match.module("linear", nn.Linear).weight
            half = match.get_attr(nn.Parameter(weight / 2), "part", replaces=("0.weight",))
            rest = match.get_attr(nn.Parameter(weight / 2), "part", replaces=("0.weight",))
            whole = match.call_function(aten.add.Tensor, half, rest)
            return match.call_function(aten.linear.default, match.inputs[0], whole)

    class RenameHalf(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(add=Fork(aten.add.Tensor, left=Input(), right=Input()))

        def check(self, match: PatternMatch) -> Refusal | None:
            named = {str(read.target) for read in match.inputs}
            return None if "part" in named else Refusal("there is no part to rename", match.root)

        def replace(self, match: PatternMatch) -> Node:
            tensor = match.graph_module.get_parameter("part")
            whole = nn.Parameter(tensor * 2)
            return match.get_attr(whole, "whole", replaces=("part", "part_1"))

    model = nn.Sequential(nn.Linear(4, 4, bias=False)).eval()
    graph_module = trace(model, (ROW,))

    first = apply_patterns(graph_module, [ScaleWeight])
    assert len(first.applied) == 1
    assert record_of(graph_module).key_map["0.weight"] == ("part", "part_1")
    second = apply_patterns(graph_module, [RenameHalf])

    assert len(second.applied) == 1
    assert record_of(graph_module).key_map == {"0.weight": ("whole",)}
    torch.testing.assert_close(run(graph_module, ROW), model(ROW))


def test_bodies_of_conditions_are_rewritten_and_the_source_is_left() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, relu_and_half, torch.sin, (x,))

    class ReplaceRelu(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(act=nn.ReLU)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_function(aten.clamp_min.default, match.inputs[0], 0)

    model = Branches().eval()
    graph_module = trace(model, (ROW,))

    record = apply_patterns(graph_module, [ReplaceRelu], until_fixpoint=True)

    (site,) = record.applied
    assert site.site == "true_graph_0.relu"
    for x in (ROW.abs(), -ROW.abs()):
        torch.testing.assert_close(run(graph_module, x), model(x))


def test_the_body_of_a_condition_never_returns_its_own_input() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, torch.tanh, torch.sin, (x,))

    class RemoveTanh(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(act=nn.Tanh)

        def replace(self, match: PatternMatch) -> Node:
            return match.inputs[0]

    graph_module = trace(Branches().eval(), (ROW,))

    record = apply_patterns(graph_module, [RemoveTanh])

    assert not record.applied
    assert "may not return its input" in (record.refused[0].reason or "")


def test_symbols_and_guards_of_dynamic_shapes_stay_as_they_were() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()).eval()
    graph_module = trace(model, (ROW,), dynamic_shapes=({0: batch},))
    (entry,) = graph_module.graph.find_nodes(op="placeholder")
    value = value_of(entry)
    assert isinstance(value, FakeTensor)
    environment = value.fake_mode.shape_env
    assert environment is not None
    before = (len(environment.guards), dict(environment.var_to_range))

    record = apply_patterns(graph_module, [FuseLinearActivation])

    assert len(record.applied) == 2
    assert (len(environment.guards), dict(environment.var_to_range)) == before
    assert "%fused_linear_relu: f32[d0, 4]" in graph_text(graph_module)
    for rows in (2, 3, 17):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(run(graph_module, x), model(x))


def test_the_result_does_not_depend_on_the_hash_seed() -> None:
    script = (
        "import torch\n"
        "from torch import nn\n"
        "from embedl_deploy.graph import graph_text\n"
        "from embedl_deploy.patterns.fusion import FuseLinearActivation\n"
        "from embedl_deploy.rewriting import apply_patterns\n"
        "from embedl_deploy.tracing import trace\n"
        "model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.GELU()).eval()\n"
        "graph = trace(model, (torch.ones(2, 4),))\n"
        "print(apply_patterns(graph, [FuseLinearActivation]).applied)\n"
        "print(graph_text(graph))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }

    assert len(printed) == 1
    assert "fused_linear_relu" in printed.pop()


def test_an_empty_list_of_patterns_changes_nothing() -> None:
    graph_module = trace(nn.Sequential(nn.ReLU()).eval(), (ROW,))
    before = graph_text(graph_module)

    record = apply_patterns(graph_module, [], "nothing")

    assert (record.name, record.applied, record.refused) == ("nothing", (), ())
    assert graph_text(graph_module) == before


def test_optional_links_make_one_pattern_of_two() -> None:
    class FuseLinearMaybeReLU(FuseLinearReLU):
        tree = Chain(linear=nn.Linear, act=Maybe(nn.ReLU))

        def replace(self, match: PatternMatch) -> Node:
            if "act" in match:
                return super().replace(match)
            negative = match.call_function(aten.neg.default, match.root)
            return match.call_function(aten.neg.default, negative)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    graph_module = trace(model, (ROW,))

    record = apply_patterns(graph_module, [FuseLinearMaybeReLU])

    assert [len(site.nodes) for site in record.applied] == [2, 1]
    torch.testing.assert_close(run(graph_module, ROW), model(ROW))
