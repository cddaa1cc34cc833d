import re
from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy import transform
from embedl_deploy.errors import PatternError
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Literal,
    Named,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Wildcard,
)
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.conditions import All, HasDtype, HasRank, IsEval
from embedl_deploy.tracing import trace

ATEN = torch.ops.aten
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Merge(Pattern):
    """A linear layer and its activation."""

    phase = Phase.FUSION
    tree = Chain(linear=nn.Linear, act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.ReLU(), match["linear"])


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU()).eval()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (Merge, "patterns is a list of patterns, got Merge itself: write [Merge]"),
        (Merge(), "patterns is a list of patterns, got"),
        ([nn.ReLU], "a pattern is a subclass of Pattern or an object of one, got ReLU"),
        ([nn.Linear], "a pattern is a subclass of Pattern or an object of one, got Linear"),
    ],
)
def test_what_is_no_list_of_patterns_is_named(patterns: object, message: str) -> None:
    with pytest.raises(PatternError, match=re.escape(message)):
        transform(model(), (ROWS,), patterns=cast("Sequence[type[Pattern]]", patterns))


def test_a_field_of_a_backend_that_is_no_list_is_named() -> None:
    with pytest.raises(PatternError, match="fusion_patterns of backend 'b' is a list of patterns"):
        Backend(name="b", fusion_patterns=cast("Sequence[type[Pattern]]", Merge))


def bilinear(size: int) -> nn.Module:
    return nn.Bilinear(size, size, 5)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("roots", nn.Linear, "roots of merge is a tuple of what nodes run, got Linear: write (Lin"),
        ("roots", (nn.Linear(2, 2),), "a tree names module classes, got the module Linear("),
        ("outputs", "linear", "outputs of merge is a tuple of names, got 'linear': write ('lin"),
        ("outputs", (nn.Linear,), "outputs of merge is a tuple of names, got <class"),
        (
            "graft",
            nn.ReLU(),
            "graft of merge is called without arguments and returns a module, got",
        ),
        ("graft", nn.Linear, "and Linear needs in_features, out_features: write a lambda"),
        ("graft", staticmethod(bilinear), "and bilinear needs size: write a lambda"),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_named(
    attribute: str, value: object, message: str
) -> None:
    class Wrong(Merge):
        name = "merge"

    setattr(Wrong, attribute, value)
    with pytest.raises(PatternError, match=re.escape(message)):
        transform(model(), (ROWS,), patterns=[Wrong])


class Grafted(Pattern):
    phase = Phase.FUSION
    tree = Chain(linear=nn.Linear, act=nn.ReLU)
    graft = staticmethod(lambda: nn.Bilinear(6, 6, 5))


class RaisingGraft(Grafted):
    graft = staticmethod(lambda: nn.Linear(6, -5))


class ByNames(Pattern):
    phase = Phase.FUSION
    tree = Merge.tree

    def replace(self, match: PatternMatch) -> dict[Node, Node]:
        made = match.call_module(nn.ReLU(), match["linear"])
        return cast("dict[Node, Node]", {"linear": made, "act": made})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (Grafted, "missing 1 required positional argument: 'input2'"),
        (Grafted, "graft's module is called with the match's inputs, here %input"),
        (RaisingGraft, "graft of raising-graft raised RuntimeError"),
        (ByNames, "got one from names: write {match['linear']: …, match['act']: …}"),
    ],
)
def test_a_replacement_of_the_wrong_kind_is_refused(pattern: type[Pattern], message: str) -> None:
    (site,) = transform(model(), (ROWS,), patterns=[pattern]).report.refusals()

    assert message in (site.reason or "")


class ByHand(Merge):
    """Matches by hand; its outputs name no capture."""

    tree = None
    roots = (nn.Tanh,)
    outputs = ("lefft",)

    def match(self, root: Node, graph_module: GraphModule) -> PatternMatch:
        linear = root.all_input_nodes[0]
        captures = {"left": linear, "tanh": root}
        nodes = (linear, root)
        return PatternMatch.of(self, graph_module, root=root, nodes=nodes, captures=captures)


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.tanh(y) + y


def test_outputs_that_name_no_capture_are_named_with_the_reader() -> None:
    (site,) = transform(ReadTwice().eval(), (ROWS,), patterns=[ByHand]).report.refusals()

    assert "also used by %add; outputs names 'lefft', and captured here: left, tanh" in (
        site.reason or ""
    )


def wrong(value: object) -> str:
    return cast("str", value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Named(wrong(Input()), "x"), "the first argument of Named is the name to capture"),
        (lambda: Literal(wrong(2)), "the first argument of Literal is the name to capture"),
        (lambda: Named("s", Literal("x")), "Named('s', …) names a node, and a literal is none"),
        (lambda: Input(cast("Callable[[Node], bool]", "x")), "write Named('x', Input())"),
        (
            lambda: Op(nn.Linear, where=cast("Callable[[Node], bool]", True)),
            "where= of Op is a condition, a function of what stands there",
        ),
        (
            lambda: Wildcard(nn.ReLU, "+", where=cast("Callable[[Node], bool]", 3)),
            "where= of Wildcard is a condition",
        ),
        (lambda: HasDtype(cast("torch.dtype", "float32")), "HasDtype takes dtypes"),
        (lambda: All(IsEval(), cast("IsEval", len)), "All takes conditions such as IsEval()"),
    ],
)
def test_a_part_of_the_wrong_kind_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(PatternError, match=re.escape(message)):
        make()


def test_conditions_take_their_parts_listed_or_in_a_tuple() -> None:
    node = next(iter(trace(model(), (ROWS,)).graph.nodes))

    assert HasDtype(torch.float32) == HasDtype((torch.float32,))
    assert All(HasRank(2), HasDtype(torch.half, torch.float32))(node)
    assert not All((HasRank(2), HasDtype(torch.half)))(node)
