from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy.patterns import FuseConvNorm
from embedl_deploy.rewriting import (
    Chain,
    Input,
    Named,
    Op,
    Pattern,
    PatternMatch,
    Phase,
    Refusal,
)
from embedl_deploy.testing import (
    assert_same_graph,
    check_refusal,
    check_rewrite,
    graph_text,
    randomize,
)
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class RemoveDoubleNegation(Pattern):
    phase = Phase.CONVERSION
    tree = Chain(aten.neg.default, aten.neg.default)

    def check(self, match: PatternMatch) -> Refusal | None:
        if match.inputs[0].op == "placeholder":
            return Refusal("the input of the model is negated", match.root)
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match.inputs[0]


class DropNorm(Pattern):
    """Wrong: a fresh norm hides that it is gone."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d)

    def replace(self, match: PatternMatch) -> Node:
        return match["conv"]


class TurnAround(Pattern):
    """Never ends: what it makes fits it again."""

    phase = Phase.FUSION
    tree = Chain(act=nn.ReLU)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.ReLU(), *match.inputs)


class Negated(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.linear, self.times = nn.Linear(4, 4), times

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        for _ in range(self.times):
            y = -y
        return y


class NegatedInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.neg(torch.neg(x))


def test_check_rewrite_takes_what_is_right() -> None:
    graph_module = check_rewrite(
        RemoveDoubleNegation, Negated(2).eval(), nn.Sequential(nn.Linear(4, 4)), ROW, count=1
    )

    assert "neg" not in graph_text(graph_module)


def test_check_rewrite_runs_conversions_to_their_end() -> None:
    check_rewrite(RemoveDoubleNegation, Negated(5).eval(), Negated(1).eval(), ROW, count=2)


def test_check_rewrite_takes_the_expected_text() -> None:
    text = (
        "%x: f32[2, 4] = input x\n"
        "%linear: f32[2, 4] = Linear(in_features=4, out_features=4, bias=True)[linear](%x)\n"
        "return (%linear)\n"
    )

    check_rewrite(RemoveDoubleNegation, Negated(2).eval(), text, ROW)
    with pytest.raises(AssertionError, match="the printed graphs differ"):
        check_rewrite(RemoveDoubleNegation, Negated(2).eval(), text.replace("4", "5"), ROW)


def test_check_rewrite_finds_a_dropped_norm_that_fresh_layers_hide() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()

    with pytest.raises(AssertionError, match=r"rolled back: on plain inputs the output moved"):
        check_rewrite(DropNorm, model, nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGE)


def test_check_rewrite_finds_a_pattern_that_fits_nowhere() -> None:
    with pytest.raises(AssertionError, match="must apply at least once, it applied 0 times"):
        check_rewrite(RemoveDoubleNegation, Negated(1).eval(), Negated(1).eval(), ROW)


def test_check_rewrite_finds_a_wrong_count_and_a_wrong_structure() -> None:
    with pytest.raises(AssertionError, match="must apply 2 times, it applied 1 times"):
        check_rewrite(RemoveDoubleNegation, Negated(2).eval(), Negated(0).eval(), ROW, count=2)
    with pytest.raises(AssertionError, match="the graphs differ"):
        check_rewrite(RemoveDoubleNegation, Negated(2).eval(), Negated(1).eval(), ROW)


def test_check_rewrite_finds_a_pattern_that_rewrites_its_own_result() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()

    with pytest.raises(AssertionError, match="rewrites its own result"):
        check_rewrite(TurnAround, model, model, ROW)


def test_check_rewrite_leaves_the_model_alone() -> None:
    model = Negated(2).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    check_rewrite(RemoveDoubleNegation, model, Negated(0).eval(), ROW)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_check_refusal_takes_the_reason() -> None:
    check_refusal(RemoveDoubleNegation, NegatedInput(), because="input of the model", example=ROW)


@pytest.mark.parametrize(
    ("model", "because", "complaint"),
    [
        (NegatedInput(), "no such reason", "no refusal says 'no such reason'"),
        (Negated(2), "anything", "the pattern rewrote it"),
        (
            Negated(1),
            "anything",
            r"(?s)tree fits nowhere.* by remove-double-neg.*near miss at %neg",
        ),
    ],
)
def test_check_refusal_finds_what_is_wrong(model: nn.Module, because: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_refusal(RemoveDoubleNegation, model.eval(), because=because, example=ROW)


def test_check_refusal_guesses_inputs_of_layers_only() -> None:
    with pytest.raises(ValueError, match="give example="):
        check_refusal(RemoveDoubleNegation, NegatedInput(), because="input of the model")


def test_same_graph_is_about_structure_not_names() -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(4, 4)

        def forward(self, y: Tensor) -> Tensor:
            return -self.other(y)

    assert_same_graph(trace(Renamed().eval(), (ROW,)), trace(Negated(1).eval(), (ROW,)))
    with pytest.raises(AssertionError, match="the graphs differ"):
        assert_same_graph(trace(Renamed().eval(), (ROW,)), trace(Negated(2).eval(), (ROW,)))


def test_same_graph_sees_operand_order_and_literals() -> None:
    class Scaled(nn.Module):
        def __init__(self, swapped: bool, scale: float) -> None:
            super().__init__()
            self.swapped, self.scale = swapped, scale

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(x)
            return (x - y if self.swapped else y - x) * self.scale

    graphs = [
        trace(Scaled(swapped, scale).eval(), (ROW,))
        for swapped, scale in ((False, 2.0), (True, 2.0), (False, 3.0))
    ]

    assert_same_graph(graphs[0], graphs[0])
    for other in graphs[1:]:
        with pytest.raises(AssertionError, match="the graphs differ"):
            assert_same_graph(graphs[0], other)


def test_random_parameters_lie_between_half_and_one_and_a_half() -> None:
    model = randomize(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]

    assert all(bool(((t >= 0.5) & (t < 1.5)).all()) for t in floats)
    assert model.get_buffer("1.num_batches_tracked") == 0
    first, second = (randomize(nn.Linear(4, 4)).state_dict()["weight"] for _ in range(2))
    assert torch.equal(first, second)


class AsPixelUnshuffle(Pattern):
    """Puts in a layer that tracing takes apart."""

    phase = Phase.CONVERSION
    tree = Op(aten.neg.default, Op(aten.pixel_unshuffle.default, Named("x", Input()), 2))

    def replace(self, match: PatternMatch) -> Node:
        layer = match.call_module(nn.PixelUnshuffle(2), match["x"])
        return match.call_function(aten.mul.Tensor, layer, -1)


class NegatedBlocks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -nn.functional.pixel_unshuffle(x, 2)


class ScaledBlocks(nn.Module):
    def __init__(self, scale: int) -> None:
        super().__init__()
        self.blocks = nn.PixelUnshuffle(2)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x) * self.scale


SMALL = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2))


def test_expected_may_hold_a_layer_that_tracing_takes_apart() -> None:
    check_rewrite(AsPixelUnshuffle, NegatedBlocks(), expected=ScaledBlocks(-1), example=SMALL)

    with pytest.raises(AssertionError, match="the graphs differ"):
        check_rewrite(AsPixelUnshuffle, NegatedBlocks(), expected=ScaledBlocks(2), example=SMALL)


RENAMED = """
%image: f32[1, 2, 4, 4] = input x
%a: f32[1, 8, 2, 2] = PixelUnshuffle(downscale_factor=2)[some.path](%image)
%b: f32[1, 8, 2, 2] = aten.mul.Tensor(%a, -1)
return (%b)
"""


def test_names_in_an_expected_text_do_not_matter() -> None:
    check_rewrite(AsPixelUnshuffle, NegatedBlocks(), expected=RENAMED, example=SMALL)

    other = RENAMED.replace("(%a, -1)", "(%image, -1)")
    differs = r"line 3 is '%mul.*-1\)', expected '%b.*%image, -1\)'"
    with pytest.raises(AssertionError, match=differs):
        check_rewrite(AsPixelUnshuffle, NegatedBlocks(), expected=other, example=SMALL)


@pytest.mark.parametrize("expected", [None, nn.ReLU, 3])
def test_what_is_expected_is_a_module_or_a_text(expected: object) -> None:
    wrong = cast("nn.Module", expected)
    with pytest.raises(ValueError, match="expected is a module, or the text that graph_text must"):
        check_rewrite(FuseConvNorm, before=nn.ReLU(), expected=wrong, example=torch.ones(1))
    with pytest.raises(ValueError, match="before is a module; got"):
        check_refusal(FuseConvNorm, before=wrong, because="nothing")


@pytest.mark.parametrize("example", [[torch.ones(1)], {"x": torch.ones(1)}])
def test_an_example_is_a_tensor_or_a_tuple(example: object) -> None:
    wrong = cast("Tensor", example)
    with pytest.raises(ValueError, match="example is a tensor or a tuple of inputs, got"):
        check_rewrite(FuseConvNorm, before=nn.ReLU(), expected=nn.ReLU(), example=wrong)
