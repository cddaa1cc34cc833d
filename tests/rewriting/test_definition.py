from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase, Refusal
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.pattern import instances

aten = torch.ops.aten


class Plain(Pattern):
    phase = Phase.FUSION
    tree = Chain(act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        return match.inputs[0]


class Checked(Plain):
    def check(self, match: PatternMatch) -> Refusal | None:
        return self.checks(match)

    def checks(self, match: PatternMatch) -> Refusal | None:
        del match
        return None


def other(**attributes: Any) -> type[Pattern]:
    return type("Other", (Plain,), attributes)


def method(self: Pattern, match: PatternMatch) -> None:
    del self, match


def search(self: Pattern, root: Node, graph_module: GraphModule) -> None:
    del self, root, graph_module


MISSPELT: list[tuple[dict[str, object], str, str]] = [
    ({"chek": method}, "chek", "check"),
    ({"output": ("act",)}, "output", "outputs"),
    ({"root": (nn.ReLU,)}, "root", "roots"),
    ({"matches": search}, "matches", "match"),
    ({"tolerence": 1e-3}, "tolerence", "tolerance"),
    ({"qdq_point": ["act"]}, "qdq_point", "qdq_points"),
]


@pytest.mark.parametrize(("attributes", "name", "meant"), MISSPELT)
def test_a_misspelt_attribute_is_named_with_what_was_meant(
    attributes: dict[str, object], name: str, meant: str
) -> None:
    with pytest.raises(PatternError, match=f"other defines '{name}', .* and no '{meant}': call it"):
        instances([other(**attributes)])


def test_a_misspelt_replace_and_tree_are_named() -> None:
    nothing = type("Other", (Pattern,), {"phase": Phase.FUSION, "tree": Op(nn.ReLU)})
    with pytest.raises(PatternError, match=r"defines 'replacement', .* and no 'replace'"):
        instances([type("Other", (nothing,), {"replacement": method})])
    with pytest.raises(PatternError, match=r"defines 'trees', .* and no 'tree'"):
        instances([type("Other", (Pattern,), {"phase": Phase.FUSION, "trees": Op(nn.ReLU)})])


@pytest.mark.parametrize(
    "rule",
    [
        Checked,
        other(_chek=method),
        other(check_all=method),
        other(checked=staticmethod(method)),
        other(sizes=(1, 2)),
    ],
)
def test_helpers_of_a_rule_are_its_own(rule: type[Pattern]) -> None:
    assert len(instances([rule])) == 1


def test_two_ways_to_say_one_thing_are_refused() -> None:
    with pytest.raises(PatternError, match="defines replace\\(\\) and graft"):
        instances([other(graft=nn.ReLU)])
    with pytest.raises(PatternError, match="sets tree and roots"):
        instances([other(roots=(nn.ReLU,))])
    grafted = type(
        "Grafted", (Pattern,), {"phase": Phase.FUSION, "tree": Op(nn.ReLU), "graft": nn.ReLU}
    )
    assert instances([type("Below", (grafted,), {"replace": Plain.replace})])
    assert instances([other(match=search, roots=(nn.ReLU,))])


@pytest.mark.parametrize("tolerance", ["1e-3", None, -1.0, float("nan"), True])
def test_tolerance_is_a_number(tolerance: object) -> None:
    with pytest.raises(PatternError, match="tolerance of other is a number, 0 or more"):
        instances([other(tolerance=tolerance)])


def test_a_backend_lists_patterns_and_engines() -> None:
    with pytest.raises(ValueError, match=r"engines of backend 'b' is a list: write \('eager',\)"):
        Backend(name="b", engines="eager")
    with pytest.raises(ValueError, match="takes patterns, subclasses of Pattern, got 'plain'"):
        Backend(name="b", fusion_patterns=("plain",))  # pyright: ignore[reportArgumentType]  # wrong on purpose
