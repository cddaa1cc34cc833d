"""What a pattern puts there is checked, and told to its author."""

import pytest
import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.errors import PatternError
from embedl_deploy.explanation import explain
from embedl_deploy.graph.text import graph_text
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, apply_patterns
from embedl_deploy.tracing import trace

ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Tanh()).eval()


class KeepsItsRoot(Pattern):
    """Wrong: what it returns is what it found."""

    phase = Phase.CONVERSION
    tree = Chain(linear=nn.Linear, act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node | dict[Node, Node]:
        return match.root


class MapsItsRootToItself(KeepsItsRoot):
    def replace(self, match: PatternMatch) -> dict[Node, Node]:
        match.call_module(nn.Linear(4, 4), match.inputs[0])
        return {match.root: match.root}


class OfAnotherSize(KeepsItsRoot):
    """Wrong: its layer takes five columns."""

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.Linear(5, 4), match.inputs[0])


class Divides(KeepsItsRoot):
    """Wrong: it divides by zero."""

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.Linear(4, 1 // 0), match.inputs[0])


@pytest.mark.parametrize("rule", [KeepsItsRoot, MapsItsRootToItself])
def test_a_rule_that_returns_its_own_root_is_refused_and_does_not_go_on_forever(
    rule: type[Pattern],
) -> None:
    graph_module = trace(model(), (ROW,))
    before = graph_text(graph_module)

    record = apply_patterns(graph_module, [rule], until_fixpoint=True)

    (refused,) = record.refused
    assert "replace() returned the root itself" in (refused.reason or "")
    assert not record.applied
    assert graph_text(graph_module) == before


def test_a_rule_whose_stage_does_the_work_may_return_its_root() -> None:
    class NamesAPlace(KeepsItsRoot):
        phase = Phase.SMOOTH

    record = apply_patterns(trace(model(), (ROW,)), [NamesAPlace])

    assert [site.site for site in record.applied] == ["_1"]


def test_the_line_of_the_authors_code_that_raised_is_named() -> None:
    record = apply_patterns(trace(model(), (ROW,)), [Divides])

    reason = record.refused[0].reason or ""
    line = Divides.replace.__code__.co_firstlineno + 1
    assert reason.startswith("replace() raised ZeroDivisionError")
    assert f"test_replacement.py:{line})" in reason


def test_a_layer_of_another_size_is_told_once_and_nothing_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    record = apply_patterns(trace(model(), (ROW,)), [OfAnotherSize])

    assert "does not run on the recorded shapes" in (record.refused[0].reason or "")
    assert [entry for entry in caplog.records if entry.levelname == "ERROR"] == []


def test_explain_gives_the_reason_of_a_replacement_that_failed() -> None:
    explanation = explain(trace(model(), (ROW,)), Divides)

    assert explanation.fired == ()
    assert explanation.first is not None
    assert explanation.first.site == "_1"
    assert "ZeroDivisionError" in str(explanation)


def test_only_points_to_quantize_are_enough_for_the_quantization_stage() -> None:
    class QuantizeOnly(Pattern):
        phase = Phase.QUANTIZATION
        tree = Chain(layer=nn.Linear)
        qdq_points = ("layer",)

    record = apply_patterns(trace(model(), (ROW,)), [QuantizeOnly])

    assert [site.site for site in record.applied] == ["_0"]


def test_a_rule_with_nothing_to_put_there_says_so() -> None:
    class PutsNothing(Pattern):
        phase = Phase.FUSION
        tree = Chain(layer=nn.Linear)

    record = apply_patterns(trace(model(), (ROW,)), [PutsNothing])

    reason = record.refused[0].reason or ""
    assert "puts-nothing says nothing to put there: define replace() or graft" in reason
    assert PatternError.__name__ in reason
