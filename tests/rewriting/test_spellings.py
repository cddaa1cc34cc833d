"""What explain says of a tree that names an operation in another way than tracing does."""

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own short name
from torch import Tensor, nn
from torch.fx import Node

from embedl_deploy import explain
from embedl_deploy.rewriting import Chain, Input, Maybe, Op, Pattern, PatternMatch, Phase, Tree
from embedl_deploy.tracing import trace

ATEN = torch.ops.aten
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def said(wanted: Tree, model: nn.Module, example: Tensor) -> str:
    class Asked(Pattern):
        phase = Phase.FUSION
        tree = wanted

        def replace(self, match: PatternMatch) -> Node:
            return match.call_module(nn.ReLU(), *match.inputs)

    return str(explain(trace(model.eval(), (example,)), Asked))


CASES: list[tuple[Tree, nn.Module, Tensor, str]] = [
    (Op(ATEN.sigmoid.default, Input()), nn.Sigmoid(), ROWS, "layer nn.Sigmoid of aten.sigmoid.de"),
    (Op(ATEN.relu, Input()), Calls(F.relu), ROWS, "write nn.ReLU"),
    (Op(ATEN.linear.default), nn.Linear(6, 2), ROWS, "write nn.Linear"),
    (Op(ATEN.addmm.default), nn.Linear(6, 2), ROWS, "write nn.Linear"),
    (Op(ATEN.conv2d.default), nn.Conv2d(3, 2, 1), IMAGE, "write nn.Conv2d"),
    (Op(ATEN.convolution.default), nn.Conv2d(3, 2, 1), IMAGE, "write nn.Conv2d"),
    (Op(ATEN.layer_norm.default), nn.LayerNorm(6), ROWS, "write nn.LayerNorm"),
    (
        Chain(nn.Conv2d, ATEN.sigmoid.default),
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sigmoid()),
        IMAGE,
        "write nn.Sigmoid",
    ),
    (
        Op(ATEN.view.default),
        Calls(lambda x: x.view(6, 4)),
        ROWS,
        "write torch.ops.aten.reshape.def",
    ),
    (Op(ATEN.add_.Tensor), Calls(lambda x: (x * 2).add_(1)), ROWS, "write torch.ops.aten.add"),
    (Op(ATEN.relu_.default), Calls(lambda x: (x + 1).relu_()), ROWS, "write nn.ReLU"),
    (
        Op(ATEN._softmax.default),
        Calls(lambda x: x.softmax(-1)),
        ROWS,
        "write torch.ops.aten.softmax",
    ),
    (
        Op(ATEN.mul.Scalar, Input(), 2),
        Calls(lambda x: x * 2),
        ROWS,
        "write torch.ops.aten.mul.Tens",
    ),
    (Op(operator.add, Input(), Input()), Calls(lambda x: x + x), ROWS, "write torch.ops.aten.add"),
    (Op(nn.PixelUnshuffle), nn.PixelUnshuffle(2), IMAGE, "no layer of PixelUnshuffle: write torch"),
    (Op(nn.Flatten), nn.Flatten(), IMAGE, "write torch.ops.aten.flatten.using_ints"),
]


@pytest.mark.parametrize(("tree", "model", "example", "advice"), CASES)
def test_says_what_tracing_makes_of_it(
    tree: Tree, model: nn.Module, example: Tensor, advice: str
) -> None:
    text = said(tree, model, example)

    assert advice in text
    assert "lists alternatives" not in text
    assert "comes near" not in text


def test_says_that_operands_stand_the_other_way_round() -> None:
    tree = Op(ATEN.sub.Tensor, Op(ATEN.sqrt, Input()), Input())

    text = said(tree, Calls(lambda x: x - torch.sqrt(x.abs())), ROWS)

    assert "expected aten.sqrt as its first operand" in text
    assert "found them the other way round" in text


def test_advice_for_a_call_with_inputs_is_not_a_tuple_of_targets() -> None:
    text = said(Op(ATEN.exp, Op(ATEN.sin, Input())), Calls(lambda x: x.cos().exp()), ROWS)

    assert "OneOf(Op(…), Op(…)) lists alternatives" in text


def test_what_may_be_absent_at_the_end_is_said_to_be_so() -> None:
    tree = Chain(nn.Conv2d, nn.GELU, Maybe(ATEN.mul.Tensor), Maybe(ATEN.add.Tensor))

    text = said(tree, nn.Linear(6, 2), ROWS)

    assert "which ends in GELU, then perhaps aten.mul.Tensor and aten.add.Tensor" in text


TAKEN_APART = [
    (nn.Unflatten(1, (1, 3)), IMAGE),
    (nn.PixelShuffle(1), IMAGE),
    (nn.ChannelShuffle(3), IMAGE),
    (nn.Unfold(2), IMAGE),
    (nn.ZeroPad2d(1), IMAGE),
    (nn.Upsample(scale_factor=2), IMAGE),
    (nn.Softmax(-1), ROWS),
    (nn.LogSoftmax(-1), ROWS),
]


@pytest.mark.parametrize(("layer", "example"), TAKEN_APART, ids=lambda value: type(value).__name__)
def test_layers_that_the_page_on_patterns_lists_do_not_stay_layers(
    layer: nn.Module, example: Tensor
) -> None:
    assert f"tracing makes no layer of {type(layer).__name__}: write torch.ops.aten." in said(
        Op(type(layer)), layer, example
    )
