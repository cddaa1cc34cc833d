import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.tracing import trace

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(2, 3, 8, 8, generator=GENERATOR)
ROWS = torch.randn(2, 5, 8, generator=GENERATOR)


def run(model: nn.Module, *args: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        result: object = model(*args)
    return (result,) if isinstance(result, Tensor) else cast("tuple[Tensor, ...]", result)


def called(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]


def traced_alike(model: nn.Module, *args: Tensor) -> GraphModule:
    """Traces ``model``; values, keys and parameter objects must be the model's."""
    graph = trace(model, args)
    for ours, theirs in zip(run(graph, *args), run(model, *args), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert list(graph.state_dict()) == list(model.state_dict())
    parameters = dict(graph.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert parameters[name] is parameter
    return graph


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, stride=2, dilation=2, groups=3, bias=False),
        nn.Conv2d(3, 4, (3, 1), padding="same"),
        nn.ConvTranspose2d(3, 6, 3, 2, 1, 1, groups=3),
        nn.Linear(8, 3, bias=False),
        nn.BatchNorm2d(3, eps=1e-3, momentum=0.3),
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.LayerNorm(8, bias=False),
        nn.LayerNorm([8, 8], elementwise_affine=False),
        nn.RMSNorm(8),
        nn.GroupNorm(3, 3),
        nn.InstanceNorm2d(3, affine=True),
        nn.PReLU(3),
        nn.GELU("tanh"),
        nn.LeakyReLU(0.2),
        nn.ELU(0.7),
        nn.ReLU6(),
        nn.Hardtanh(-0.5, 0.7),
        nn.Hardswish(),
        nn.Softplus(2.0, 5.0),
        nn.Threshold(0.1, 0.2),
        nn.GLU(3),
        nn.MaxPool2d((2, 1), stride=(1, 2), ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.AdaptiveMaxPool2d(2),
        nn.Dropout(0.3),
        nn.Dropout2d(0.3),
    ],
    ids=repr,
)
def test_a_module_becomes_the_same_module(layer: nn.Module) -> None:
    model = nn.Sequential(layer).eval()

    graph = traced_alike(model, IMAGE)

    assert called(graph) == ["0"]
    assert repr(graph.get_submodule("0")) == repr(layer)


def test_a_batch_norm_keeps_its_momentum_and_counter() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)).eval()

    graph = trace(model, (IMAGE,)).train()
    graph(IMAGE)

    norm = graph.get_submodule("0")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum == 0.3
    assert norm.num_batches_tracked == 1
    assert model[0].num_batches_tracked == 0


class SharedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


def test_two_calls_of_one_module_stay_two_calls_of_one_module() -> None:
    graph = traced_alike(SharedConv().eval(), IMAGE)

    assert called(graph) == ["conv", "first", "conv", "second"]


class TiedAndFunctional(nn.Module):
    """A weight read as an embedding, as a linear layer, and by functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 8)
        self.head = nn.Linear(8, 8)
        self.head.weight = self.words.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids)
        return self.head(x), functional.linear(x, self.head.weight)


def test_tied_weights_stay_tied_and_functional_calls_add_no_key() -> None:
    model = TiedAndFunctional().eval()
    graph = traced_alike(model, torch.arange(6).view(2, 3))

    assert called(graph) == ["words", "head", "head.linear"] or called(graph) == [
        "words",
        "head",
        "words.linear",
    ]
    modules = [graph.get_submodule(name) for name in called(graph)]
    assert all(module.weight is model.words.weight for module in modules)


def test_hidden_keys_survive_copies_and_loading() -> None:
    model = TiedAndFunctional().eval()
    other = TiedAndFunctional().eval()
    ids = torch.arange(6).view(2, 3)

    graph = copy.deepcopy(trace(model, (ids,)))
    graph.load_state_dict(other.state_dict())

    assert list(graph.state_dict()) == list(model.state_dict())
    assert torch.equal(run(graph, ids)[1], run(other, ids)[1])


class TransposedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 4, generator=GENERATOR))
        self.b = nn.Parameter(torch.randn(4, generator=GENERATOR))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = torch.addmm(self.b, x.view(-1, 8), self.w)
        return flat, x @ self.w


def test_a_product_with_a_parameter_becomes_a_transposed_linear() -> None:
    model = TransposedWeight()

    graph = traced_alike(model, ROWS)

    layers = [graph.get_submodule(name) for name in called(graph)]
    assert [type(layer) for layer in layers] == [TransposedLinear, TransposedLinear]
    assert all(layer.weight is model.w for layer in layers)


class OddNames(nn.Module):
    """A norm whose parameters are not called weight and bias, and a padded convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(8, generator=GENERATOR))
        self.beta = nn.Parameter(torch.rand(8, generator=GENERATOR))
        self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(self.conv(x), (8,), self.gamma, self.beta)


def test_modules_are_rebuilt_from_the_arguments_of_the_call() -> None:
    graph = traced_alike(OddNames(), IMAGE)

    conv = graph.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    assert conv.padding == (0, 0)
    assert called(graph) == ["conv", "layer_norm"]


def test_packed_projections_of_attention_are_named_after_their_parameter() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    graph = traced_alike(model, ROWS)

    assert "self_attn.in_proj" in called(graph)
    assert "self_attn.out_proj" in called(graph)


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True)


def test_a_dropout_that_is_on_in_eval_mode_stays_on() -> None:
    graph = trace(AlwaysDrops().eval(), (ROWS,)).eval()

    assert (graph(ROWS) == 0).any()


class FunctionalNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.relu(self.relu(x)) - 1)


def test_free_names_avoid_the_names_of_the_model() -> None:
    graph = traced_alike(FunctionalNames(), ROWS)

    assert called(graph) == ["relu", "relu_1", "relu_2"]


class HandWrittenNorm(nn.Module):
    """RMSNorm as Llama and T5 spell it, in the order that ``spelling`` names."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "llama":
            wide = x.to(torch.float32)
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.weight * wide.to(x.dtype)
        if self.spelling == "t5":
            variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
            return self.weight * (x * torch.rsqrt(variance + 1e-6))
        if self.spelling == "gemma":
            normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
            return (normed * (1.0 + self.weight.float())).type_as(x)
        if self.spelling == "root":
            return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.weight
        if self.spelling == "other input":
            return self.weight * (x * torch.rsqrt((x + 1).pow(2).mean(-1, keepdim=True) + 1e-6))
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6))


@pytest.mark.parametrize("spelling", ["llama", "t5", "root"])
def test_a_norm_written_by_hand_becomes_the_module(spelling: str) -> None:
    model = nn.Sequential(HandWrittenNorm(spelling), nn.Linear(8, 4)).eval()

    graph = traced_alike(model, ROWS)

    assert called(graph) == ["0", "1"]
    assert isinstance(graph.get_submodule("0"), nn.RMSNorm)


@pytest.mark.parametrize("spelling", ["llama", "t5"])
def test_a_norm_in_the_order_of_the_module_keeps_every_bit(spelling: str) -> None:
    model = HandWrittenNorm(spelling).eval()

    assert torch.equal(trace(model, (ROWS,))(ROWS), model(ROWS))


def test_one_norm_called_twice_stays_one_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = HandWrittenNorm("llama"), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.layer(self.norm(x)))

    graph = traced_alike(Twice(), ROWS)

    assert called(graph) == ["norm", "layer", "norm"]


@pytest.mark.parametrize("spelling", ["other input", "over rows", "gemma"])
def test_what_only_looks_like_a_norm_stays(spelling: str) -> None:
    graph = traced_alike(HandWrittenNorm(spelling), ROWS)

    assert called(graph) == []


def test_a_norm_that_rounds_in_between_stays() -> None:
    rows = ROWS.bfloat16()
    model = HandWrittenNorm("llama").bfloat16()

    graph = trace(model, (rows,))

    assert called(graph) == []
    assert torch.equal(graph(rows), model(rows))
