import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.explanation import explain
from embedl_deploy.graph.nodes import dtype_of
from embedl_deploy.patterns import FuseConvNormAddActivation, RecomposeGelu
from embedl_deploy.rewriting import Chain, Maybe, Op, Pattern, PatternMatch, Phase, Refusal
from embedl_deploy.rewriting.conditions import All, HasDtype, HasRank, IsEval
from embedl_deploy.rewriting.difference import Aspect, Difference
from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

ATEN = torch.ops.aten
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class MergeConvNormAct(Pattern):
    """Only to be explained."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d, act=nn.ReLU)

    def check(self, match: PatternMatch) -> Refusal | None:
        if match.module("conv", nn.Conv2d).groups > 1:
            return Refusal("the convolution is grouped", match["conv"])
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.ReLU(), match["norm"])


class Sequence(nn.Module):
    """Layers, one after the other, then a function."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Residual(nn.Module):
    """A convolution, a norm, a scaled add and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.norm(self.conv(x)), x, alpha=2).relu()


class ReadTwice(Residual):
    """The convolution feeds the norm and the output."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() - y


class AlmostGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 1.5))


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3)


def first_difference(model: nn.Module, pattern: type[Pattern], example: Tensor) -> Difference:
    explanation = explain(trace(model.eval(), (example,)), pattern)
    assert explanation.first is not None, str(explanation)
    return explanation.first.first


def test_tells_where_it_fired() -> None:
    model = Sequence(conv(), nn.BatchNorm2d(4), nn.ReLU()).eval()

    explanation = explain(model, MergeConvNormAct, args=(IMAGE,))

    assert [site.nodes for site in explanation.fired] == [("layers_0", "layers_1", "layers_2")]
    assert explanation.first is None
    assert "test_explain.py" in str(explanation)


def test_names_another_module_in_the_place_of_a_link() -> None:
    model = Sequence(conv(), nn.GroupNorm(2, 4), nn.ReLU())

    difference = first_difference(model, MergeConvNormAct, IMAGE)

    assert (difference.aspect, difference.node) == ("target", "layers_1")
    assert difference.expected == "BatchNorm2d"
    assert "GroupNorm" in difference.found


def test_names_another_module_at_the_end() -> None:
    model = Sequence(conv(), nn.BatchNorm2d(4), nn.GELU())

    difference = first_difference(model, MergeConvNormAct, IMAGE)

    assert (difference.aspect, difference.node) == ("target", "layers_2")
    assert "ReLU" in difference.expected
    assert "GELU" in difference.found


def test_names_a_node_between_two_links() -> None:
    model = Sequence(conv(), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU())

    difference = first_difference(model, MergeConvNormAct, IMAGE)

    assert (difference.aspect, difference.node) == ("extra", "layers_1")
    assert "Dropout" in difference.found


def test_names_a_link_that_is_missing() -> None:
    difference = first_difference(Sequence(conv(), nn.ReLU()), MergeConvNormAct, IMAGE)

    assert difference.aspect == "link"
    assert "'norm' (BatchNorm2d)" in difference.expected


def test_names_the_other_reader() -> None:
    difference = first_difference(ReadTwice(), MergeConvNormAct, IMAGE)

    assert (difference.aspect, difference.node) == ("readers", "conv")
    assert "%sub" in difference.found


def test_repeats_what_check_said() -> None:
    model = Sequence(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU())

    difference = first_difference(model, MergeConvNormAct, IMAGE)

    assert (difference.aspect, difference.node) == ("check", "layers_0")
    assert difference.found == "the convolution is grouped"


def test_names_a_scaled_add() -> None:
    difference = first_difference(Residual(), FuseConvNormAddActivation, IMAGE)

    assert (difference.aspect, difference.node) == ("literal", "add")
    assert "alpha=2" in difference.found


def test_names_a_literal_deep_in_a_tree() -> None:
    difference = first_difference(AlmostGelu(), RecomposeGelu, ROWS)

    assert (difference.aspect, difference.node) == ("literal", "div")
    assert "1.5" in difference.found


class HalfLinear(Pattern):
    """Only to be explained."""

    phase = Phase.FUSION
    tree = Chain(linear=Op(nn.Linear, where=All((IsEval(), HasRank(3), HasDtype((torch.half,))))))


class PlainConditions(Pattern):
    """Only to be explained: conditions that are plain functions."""

    phase = Phase.FUSION
    tree = Chain(linear=Op(nn.Linear, where=lambda node: dtype_of(node) is torch.float16))


def test_puts_conditions_into_words() -> None:
    difference = first_difference(Sequence(nn.Linear(6, 2)), HalfLinear, ROWS)

    assert difference.aspect == "shape"
    assert "rank 3" in difference.expected
    assert difference.found == "rank 2 ([4, 2])"


def test_finds_out_what_a_plain_function_looks_at() -> None:
    difference = first_difference(Sequence(nn.Linear(6, 2)), PlainConditions, ROWS)

    wanted: Aspect = "dtype"
    assert difference.aspect == wanted
    assert "torch.float16" in difference.cure


def test_looks_around_one_node_only() -> None:
    model = Sequence(conv(), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.GELU()).eval()

    explanation = explain(trace(model, (IMAGE,)), MergeConvNormAct, "layers_3")

    assert all("layers_3" in miss.matched for miss in explanation.near_misses)
    assert explanation.near_misses


def test_reports_an_overlap_from_the_report_of_a_rewritten_graph() -> None:
    model = Sequence(conv(), nn.BatchNorm2d(4), nn.ReLU()).eval()
    result = transform(model, (IMAGE,), backend="tensorrt").model

    from embedl_deploy.patterns import FuseConvNorm

    explanation = explain(result, FuseConvNorm)

    assert explanation.first is not None
    assert explanation.first.first.aspect == "overlap"
    assert "fuse-conv-norm-activation" in explanation.first.first.found


def test_says_that_nothing_comes_near() -> None:
    explanation = explain(trace(AlmostGelu(), (ROWS,)), MergeConvNormAct)

    assert explanation.first is None
    assert "nothing in the graph comes near its tree, which ends in ReLU" in str(explanation)


def test_an_optional_link_is_no_difference() -> None:
    class Optional(MergeConvNormAct):
        tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d, act=Maybe(nn.ReLU))

    explanation = explain(trace(Sequence(conv(), nn.LayerNorm(6)).eval(), (IMAGE,)), Optional)

    assert explanation.first is not None
    assert [item.aspect for item in explanation.first.differences] == ["target"]
    assert "LayerNorm" in explanation.first.first.found


class MistakenReplacement(MergeConvNormAct):
    """Asks its match for a name that it does not capture."""

    def replace(self, match: PatternMatch) -> Node:
        return match["relu"]


class MistakenCheck(MergeConvNormAct):
    def check(self, match: PatternMatch) -> Refusal | None:
        raise KeyError(f"groups of {match.root.name}")


def test_tells_a_mistake_in_the_rule_from_what_other_rewrites_did() -> None:
    model = Sequence(conv(), nn.BatchNorm2d(4), nn.ReLU())

    difference = first_difference(model, MistakenReplacement, IMAGE)

    assert difference.aspect == "fault"
    assert "replace() raised PatternError: mistaken-replacement asks" in difference.found
    assert "correct replace() of mistaken-replacement" in difference.cure
    assert "veto" not in str(difference)


def test_tells_a_mistake_in_check_from_what_check_says() -> None:
    model = Sequence(conv(), nn.BatchNorm2d(4), nn.ReLU())

    difference = first_difference(model, MistakenCheck, IMAGE)

    assert difference.aspect == "fault"
    assert "raised KeyError: 'groups of layers_2'" in difference.found
    assert "correct match() or check() of mistaken-check" in difference.cure
