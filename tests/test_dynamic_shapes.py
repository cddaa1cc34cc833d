from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from embedl_deploy import lower, transform
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.graph import graph_text, record_of, value_of
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.quantize import convert, quantize
from embedl_deploy.tracing import trace


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(self.deep_norm(self.deep(x)) + x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Encoder(nn.Module):
    """A layer with masked attention written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(16), nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = tokens.shape
        q, k, v = self.mix(self.norm(tokens)).view(batch, length, 3, 4, 4).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / 2.0
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, length, 16)
        x = tokens + self.out(mixed)
        return x + self.down(nn.functional.gelu(self.up(x)))


class Windows(nn.Module):
    """Attention inside windows of 4 x 4, with a learned bias."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(2, 16, 16))

    def forward(self, image: Tensor) -> Tensor:
        batch, height, width, channels = image.shape
        x = image.view(batch, height // 4, 4, width // 4, 4, channels).transpose(2, 3)
        x = x.reshape(-1, 16, channels)
        q, k, v = self.mix(x).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) * 0.5 + self.bias, -1)
        x = self.out((weights @ v).transpose(1, 2).reshape(-1, 16, channels))
        x = x.view(batch, height // 4, width // 4, 4, 4, channels).transpose(2, 3)
        return x.reshape(batch, height, width, channels)


class Decoder(nn.Module):
    """A step of a language model: new tokens attend to those in the cache, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(32, 16), nn.RMSNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 32)

    def forward(self, ids: Tensor, *, cache: dict[str, Tensor]) -> dict[str, Tensor]:
        batch, length = ids.shape
        x = self.norm(self.embed(ids))
        q = self.q(x).view(batch, length, 4, 4).transpose(1, 2)
        k = self.k(x).view(batch, length, 2, 4).transpose(1, 2)
        v = self.v(x).view(batch, length, 2, 4).transpose(1, 2)
        keys, values = torch.cat([cache["keys"], k], 2), torch.cat([cache["values"], v], 2)
        mixed = nn.functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, 16))
        return {"logits": self.head(x), "keys": keys, "values": values}


@dataclass(frozen=True)
class Example:
    """Inputs of one size."""

    args: tuple[Tensor, ...]

    kwargs: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Dynamic:
    """A model, what of its inputs is dynamic, and inputs of three sizes."""

    build: Callable[[], nn.Module]

    shapes: object
    """As torch.export takes them."""

    smallest: Example

    given: Example

    odd: Example

    def examples(self) -> Iterator[Example]:
        """Yields the inputs, smallest first."""
        yield from (self.smallest, self.given, self.odd)


def image_of(batch: int, height: int, width: int) -> Example:
    return Example((torch.randn(batch, 3, height, width),))


def tokens_of(batch: int, length: int) -> Example:
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, length // 2 + 1 :] = False
    return Example((torch.randn(batch, length, 16), mask))


def map_of(batch: int, rows: int) -> Example:
    return Example((torch.randn(batch, 4 * rows, 12, 8),))


def step_of(batch: int, length: int, past: int) -> Example:
    keys, values = torch.randn(batch, 2, past, 4), torch.randn(batch, 2, past, 4)
    ids = torch.randint(0, 32, (batch, length))
    return Example((ids,), {"cache": {"keys": keys, "values": values}})


BATCH = Dim("batch", min=1, max=64)
LENGTH = Dim("length", min=2, max=128)
PAST = Dim("past", min=2, max=128)
ROWS = Dim("rows", min=2, max=16)
HEIGHT, WIDTH = Dim("height", min=4, max=64), Dim("width", min=4, max=64)

MODELS = {
    "conv net": Dynamic(
        ConvNet,
        {"image": {0: BATCH, 2: HEIGHT, 3: WIDTH}},
        image_of(1, 4, 4),
        image_of(3, 8, 10),
        image_of(7, 17, 9),
    ),
    "encoder": Dynamic(
        Encoder,
        {"tokens": {0: BATCH, 1: LENGTH}, "mask": {0: BATCH, 1: LENGTH}},
        tokens_of(1, 2),
        tokens_of(3, 6),
        tokens_of(5, 13),
    ),
    "windows": Dynamic(
        Windows,
        {"image": {0: BATCH, 1: 4 * ROWS}},
        map_of(1, 2),
        map_of(3, 4),
        map_of(5, 7),
    ),
    "decoder": Dynamic(
        Decoder,
        {
            "ids": {0: BATCH, 1: LENGTH},
            "cache": {"keys": {0: BATCH, 2: PAST}, "values": {0: BATCH, 2: PAST}},
        },
        step_of(1, 2, 2),
        step_of(3, 4, 5),
        step_of(5, 7, 11),
    ),
}


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad():
        return cast("list[Tensor]", tree_leaves(model(*example.args, **example.kwargs)))


def assumptions(graph: GraphModule) -> tuple[object, ...]:
    """Returns guards, ranges of symbols and declared ranges, and the sizes of inputs, outputs."""
    (first, *_) = graph.graph.find_nodes(op="placeholder")
    value = value_of(first)
    assert isinstance(value, FakeTensor)
    environment = value.fake_mode.shape_env
    assert environment is not None
    guards = [str(guard.expr) for guard in environment.guards]
    ranges = {str(symbol): str(found) for symbol, found in environment.var_to_range.items()}
    ends = (*graph.graph.find_nodes(op="placeholder"), *graph.graph.output_node().all_input_nodes)
    sizes = [str(getattr(value_of(node), "shape", None)) for node in ends]
    return guards, ranges, dict(record_of(graph).range_constraints), sizes


def stages(model: nn.Module, case: Dynamic) -> Iterator[tuple[str, GraphModule]]:
    """Yields the graph after each stage."""
    args, kwargs = case.given.args, case.given.kwargs
    graph = trace(model, args, kwargs, dynamic_shapes=case.shapes)
    yield "traced", graph
    graph = transform(graph, patterns=INDUCTOR.conversion_patterns, verify=True).model
    yield "converted", graph
    graph = transform(graph, patterns=INDUCTOR.fusion_patterns, verify=True).model
    yield "fused", graph
    samples = [(*example.args, dict(example.kwargs)) for example in case.examples()]

    def forward_loop(quantized: nn.Module) -> None:
        for *positional, keyword in samples:
            quantized(*positional, **keyword)

    graph = quantize(graph, args, forward_loop=forward_loop, kwargs=kwargs, backend=INDUCTOR)
    yield "quantized", graph
    yield "flat", convert(graph)


@pytest.mark.parametrize("name", MODELS)
def test_symbols_guards_and_values_survive_every_stage(name: str) -> None:
    torch.manual_seed(0)
    case = MODELS[name]
    model = case.build().eval()
    before: tuple[object, ...] = ()

    for stage, graph in stages(model, case):
        before = before or assumptions(graph)
        assert assumptions(graph) == before, stage
        assert "d0" in graph_text(graph), stage
        for example in case.examples():
            for found, expected in zip(
                outputs(graph, example), outputs(model, example), strict=True
            ):
                allowed = 1e-6 if stage in ("traced", "converted", "fused") else 0.05
                assert relative_error(found, expected) <= allowed, (stage, expected.shape)


@pytest.mark.parametrize("name", MODELS)
def test_a_rewritten_model_is_exported_and_lowered_for_every_size(name: str) -> None:
    torch.manual_seed(0)
    case = MODELS[name]
    model = case.build().eval()
    args, kwargs = case.given.args, dict(case.given.kwargs)
    result = transform(model, args, kwargs, dynamic_shapes=case.shapes, backend=INDUCTOR).model

    exported = torch.export.export(
        result,
        args,
        kwargs,
        dynamic_shapes=cast("dict[str, object]", case.shapes),
        strict=False,
    ).module()
    lowered = lower(result, args, kwargs, engines=["eager"])

    for example in case.examples():
        for compiled in (exported, lowered):
            for found, expected in zip(
                outputs(compiled, example), outputs(model, example), strict=True
            ):
                torch.testing.assert_close(found, expected)
