import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph import graph_text, record_of, structural_copy
from embedl_deploy.patterns.fusion import FuseLinearActivation
from embedl_deploy.rewriting import (
    Chain,
    Pattern,
    PatternMatch,
    Phase,
    TransformationPlan,
    apply_plan,
    make_plan,
)
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class ReplaceTanhWithReLU(Pattern):
    """A conversion that makes what the fusion needs."""

    phase = Phase.CONVERSION
    tree = Chain(tanh=nn.Tanh)
    graft = nn.ReLU


class FuseLinearLinear(Pattern):
    """Overlaps with linear + activation, and is as large."""

    phase = Phase.FUSION
    tree = Chain(first=nn.Linear, act=nn.ReLU, second=nn.Linear)

    def replace(self, match: PatternMatch) -> Node:
        value = match.call_module(match.module("first", nn.Linear), *match.inputs)
        value = match.call_function(aten.relu.default, value)
        return match.call_module(match.module("second", nn.Linear), value)


RULES = (ReplaceTanhWithReLU, FuseLinearActivation)


def relu_and_one(x: Tensor) -> Tensor:
    return torch.relu(x) + 1


def four_layers() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU()
    ).eval()


def sites(plan: TransformationPlan, pattern: str) -> list[PatternMatch]:
    return [match for match in plan.sites() if match.pattern.name == pattern]


def test_a_plan_is_a_dry_run() -> None:
    graph_module = trace(four_layers(), (ROW,))
    before, keys = graph_text(graph_module), list(graph_module.state_dict())

    plan = make_plan(graph_module, RULES)

    assert graph_text(graph_module) == before
    assert list(graph_module.state_dict()) == keys
    assert not record_of(graph_module).key_map
    assert [match.stage for match in plan.sites()] == ["conversion"] * 2 + ["fusion"] * 3
    assert all(match.apply for match in plan.sites())


def test_matches_are_found_by_node_and_pattern() -> None:
    graph_module = trace(four_layers(), (ROW,))
    (node,) = [node for node in graph_module.graph.nodes if node.target == "5"]

    plan = make_plan(graph_module, RULES)

    assert plan.matches[node][FuseLinearActivation].root.name == node.name


def test_applying_gives_the_same_as_rewriting_and_can_be_done_twice() -> None:
    model = four_layers()
    graph_module = trace(model, (ROW,))
    plan = make_plan(graph_module, RULES)

    first, report = apply_plan(plan)
    second, again = apply_plan(plan)

    assert graph_text(first) == graph_text(second)
    assert (
        report.counts()
        == again.counts()
        == {
            "fuse-linear-activation": 3,
            "replace-tanh-with-re-lu": 2,
        }
    )
    assert (report.applied_count, report.skipped_count) == (5, 0)


def test_a_veto_leaves_a_site_alone_and_names_what_depended_on_it() -> None:
    graph_module = trace(four_layers(), (ROW,))
    plan = make_plan(graph_module, RULES)
    vetoed, kept = sites(plan, "replace-tanh-with-re-lu")

    vetoed.apply = False
    result, report = apply_plan(plan)

    assert report.counts() == {"fuse-linear-activation": 2, "replace-tanh-with-re-lu": 1}
    assert next(report.applied_sites()).site == kept.root.name
    reasons = {site.pattern: site.reason for site in report.refusals()}
    assert reasons["replace-tanh-with-re-lu"] == "vetoed in the plan"
    assert "replace-tanh-with-re-lu at %" in (reasons["fuse-linear-activation"] or "")
    assert "nn.Tanh" not in graph_text(result)
    assert graph_text(result).count("Tanh()") == 1


def test_a_smaller_match_can_be_wanted_instead_of_the_larger() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    graph_module = trace(model, (ROW,))
    plan = make_plan(graph_module, (FuseLinearActivation, FuseLinearLinear))
    (larger,) = sites(plan, "fuse-linear-linear")
    (smaller,) = sites(plan, "fuse-linear-activation")
    assert (larger.apply, smaller.apply) == (True, False)
    assert smaller.refusal is not None

    larger.apply, smaller.apply = False, True
    result, report = apply_plan(plan)

    assert report.counts() == {"fuse-linear-activation": 1}
    assert torch.equal(result(ROW), model(ROW))


def test_a_vetoed_larger_match_does_not_let_an_unplanned_one_in() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    plan = make_plan(trace(model, (ROW,)), (FuseLinearActivation, FuseLinearLinear))

    sites(plan, "fuse-linear-linear")[0].apply = False
    _, report = apply_plan(plan)

    assert report.applied_count == 0


def test_the_rewritten_model_shares_parameters_until_it_trains() -> None:
    model = four_layers()
    result, _ = apply_plan(make_plan(trace(model, (ROW,)), RULES))
    originals = {id(parameter) for parameter in model.parameters()}

    assert {id(parameter) for parameter in result.parameters()} == originals
    result.train()

    assert not originals & {id(parameter) for parameter in result.parameters()}
    assert set(result.state_dict()) == set(model.state_dict())


def test_the_share_of_multiplications_that_a_stage_covers_is_reported() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 12)).eval()

    _, report = apply_plan(make_plan(trace(model, (ROW,)), RULES))

    assert report.coverage["fusion"] == pytest.approx(0.25)


def test_bodies_of_conditions_are_planned_and_the_source_is_left() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, relu_and_one, torch.sin, (x,))

    class ReplaceRelu(Pattern):
        phase = Phase.CONVERSION
        tree = Chain(act=nn.ReLU)

        def replace(self, match: PatternMatch) -> Node:
            return match.call_function(aten.clamp_min.default, match.inputs[0], 0)

    model = Branches().eval()
    graph_module = trace(model, (ROW,))

    plan = make_plan(graph_module, [ReplaceRelu])
    (match,) = plan.sites()
    result, _ = apply_plan(plan)

    assert match.scope == "true_graph_0."
    body = graph_module.get_submodule("true_graph_0")
    assert isinstance(body, GraphModule)
    assert "ReLU()[relu]" in graph_text(body)
    for x in (ROW.abs(), -ROW.abs()):
        assert torch.equal(result(x), model(x))


def test_the_record_of_a_copy_is_its_own() -> None:
    graph_module = trace(four_layers(), (ROW,))

    record_of(structural_copy(graph_module)).key_map["a"] = ("b",)

    assert not record_of(graph_module).key_map
