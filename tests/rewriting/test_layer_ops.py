"""What explain says of layers that tracing never leaves as layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy import explain
from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import is_call
from embedl_deploy.rewriting import Chain, Op, Pattern, Phase, Tree
from embedl_deploy.rewriting.describe import describe_target
from embedl_deploy.rewriting.layer_ops import LAYER_OPS, in_place_of_layer
from embedl_deploy.rewriting.pattern import instances
from embedl_deploy.tracing import trace


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


ROWS, SIGNAL, IMAGE, VOLUME = (
    values(2, 4),
    values(1, 4, 4),
    values(1, 4, 4, 4),
    values(1, 4, 4, 4, 4),
)
INPUTS = {1: SIGNAL, 2: IMAGE, 3: VOLUME}

EXAMPLES: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
    (nn.Softmax(-1), (ROWS,)),
    (nn.Softmax2d(), (IMAGE,)),
    (nn.LogSoftmax(-1), (ROWS,)),
    (nn.Flatten(), (IMAGE,)),
    (nn.Unflatten(1, (2, 2)), (ROWS,)),
    (nn.PixelShuffle(2), (IMAGE,)),
    (nn.PixelUnshuffle(2), (IMAGE,)),
    (nn.ChannelShuffle(2), (IMAGE,)),
    (nn.Fold((3, 3), 2), (values(1, 12, 4),)),
    (nn.Unfold(2), (IMAGE,)),
    *((getattr(nn, f"ZeroPad{rank}d")(1), (INPUTS[rank],)) for rank in INPUTS),
    *((getattr(nn, f"ConstantPad{rank}d")(1, 0.5), (INPUTS[rank],)) for rank in INPUTS),
    *((getattr(nn, f"ReflectionPad{rank}d")(1), (INPUTS[rank],)) for rank in INPUTS),
    *((getattr(nn, f"ReplicationPad{rank}d")(1), (INPUTS[rank],)) for rank in INPUTS),
    *((getattr(nn, f"CircularPad{rank}d")(1), (INPUTS[rank],)) for rank in INPUTS),
    (nn.Upsample(scale_factor=2), (IMAGE,)),
    (nn.UpsamplingNearest2d(scale_factor=2), (IMAGE,)),
    (nn.UpsamplingBilinear2d(scale_factor=2), (IMAGE,)),
    (nn.Bilinear(4, 4, 2), (ROWS, ROWS)),
    (nn.EmbeddingBag(5, 4), (torch.tensor([[1, 2]]),)),
    (nn.CosineSimilarity(), (ROWS, ROWS)),
    (nn.PairwiseDistance(), (ROWS, ROWS)),
    (nn.MSELoss(), (ROWS, ROWS)),
    (nn.L1Loss(), (ROWS, ROWS)),
    (nn.CrossEntropyLoss(), (ROWS, torch.tensor([0, 1]))),
    (nn.SmoothL1Loss(), (ROWS, ROWS)),
    (nn.GRUCell(4, 3), (ROWS,)),
    (nn.Softmin(-1), (ROWS,)),
    (nn.Softsign(), (ROWS,)),
    (nn.Tanhshrink(), (ROWS,)),
    (nn.LocalResponseNorm(2), (IMAGE,)),
    (nn.LPPool2d(2, 2), (IMAGE,)),
    (nn.MultiheadAttention(4, 2, batch_first=True), (SIGNAL, SIGNAL, SIGNAL)),
    (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (SIGNAL,)),
    (nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), (SIGNAL, SIGNAL)),
]
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


@pytest.mark.parametrize(("layer", "example"), EXAMPLES, ids=lambda item: type(item).__name__)
def test_the_table_says_what_tracing_makes(layer: nn.Module, example: tuple[Tensor, ...]) -> None:
    graph_module = trace(layer.eval(), example)
    calls = [node for node in graph_module.graph.nodes if node.op.startswith("call_")]
    ran = [f"torch.ops.{describe_target(node.target)}" for node in calls if callable(node.target)]
    wanted = str(in_place_of_layer(type(layer))).partition(": write ")[2]

    assert not any(is_call(node, type(layer)) for node in calls)
    assert wanted.startswith("the ops") or wanted.split(",")[0] in ran


def test_the_table_is_checked_as_a_whole() -> None:
    assert {type(layer) for layer, _ in EXAMPLES} | set(_RECURRENT) >= set(LAYER_OPS)


def test_layers_that_stay_are_not_in_it() -> None:
    stay = (nn.Linear, nn.Conv2d, nn.ReLU, nn.GLU, nn.RMSNorm, nn.CELU, nn.MaxPool2d, nn.Dropout)

    assert not any(in_place_of_layer(layer) for layer in stay)


def said(wanted: Tree, model: nn.Module) -> str:
    class Asked(Pattern):
        phase = Phase.FUSION
        tree = wanted

    return str(explain(model.eval(), Asked, args=(ROWS,)))


@pytest.mark.parametrize("wanted", [Op(nn.Softmax), Chain(nn.Linear, nn.Softmax)])
def test_explain_says_what_to_write_where_it_is_and_where_not(wanted: Tree) -> None:
    there = said(wanted, nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Tanh()))
    elsewhere = said(wanted, nn.Sequential(nn.Linear(4, 4), nn.Tanh()))

    assert "expected Softmax, found aten.softmax.int" in there
    for text in (there, elsewhere):
        assert "tracing makes no layer of Softmax: write torch.ops.aten.softmax.int" in text


def test_explain_says_that_an_identity_leaves_no_node() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Tanh())

    for wanted in (Chain(nn.Linear, nn.Identity, nn.Tanh), Op(nn.Identity)):
        assert "tracing leaves no node of an Identity: take it out" in said(wanted, model)


def test_roots_that_no_node_runs_are_refused() -> None:
    class ByHand(Pattern):
        phase = Phase.FUSION
        roots = (nn.functional.linear,)

        def match(self, root: Node, graph_module: GraphModule) -> None:
            del root, graph_module

    with pytest.raises(PatternError, match=r"no node runs: .* Write nn\.Linear"):
        instances([ByHand])
