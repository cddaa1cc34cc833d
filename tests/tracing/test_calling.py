from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedl_deploy.graph.record import record_of
from embedl_deploy.tracing import trace

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Nested(nn.Module):
    def forward(
        self, x: Tensor, *, more: dict[str, tuple[Tensor, Tensor]]
    ) -> dict[str, list[Tensor]]:
        first, second = more["pair"]
        return {"sums": [x + first, x + second], "products": [x * first]}


def test_keywords_and_nested_inputs_and_outputs_keep_their_names() -> None:
    model = Nested()
    more = {"pair": (ROWS + 1, ROWS + 2)}

    graph = trace(model, (ROWS,), {"more": more})
    ours, theirs = graph(x=ROWS, more=more), model(ROWS, more=more)

    assert list(ours) == list(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours["sums"], theirs["sums"], strict=True))


@dataclass
class Pair:
    left: Tensor
    right: Tensor
    label: str = ""


class Cache:
    """A class that neither pytree nor dataclasses know."""

    def __init__(self, layers: list[Pair], length: int) -> None:
        self.layers = layers
        self.length = length


class UsesClasses(nn.Module):
    def forward(self, pair: Pair, cache: Cache) -> tuple[Pair, Cache]:
        layer = cache.layers[0]
        grown = Pair(torch.cat([layer.left, pair.left]), layer.right + 1, layer.label)
        return Pair(pair.left + pair.right, pair.right, "sum"), Cache([grown], cache.length + 1)


def test_unregistered_classes_pass_in_and_out() -> None:
    pair, cache = Pair(ROWS, ROWS + 1), Cache([Pair(ROWS, ROWS, "layer")], 7)

    graph = trace(UsesClasses(), (pair, cache))
    result, grown = graph(pair, cache)

    assert isinstance(result, Pair)
    assert result.label == "sum"
    assert torch.equal(result.left, ROWS + (ROWS + 1))
    assert isinstance(grown, Cache)
    assert grown.length == 8
    assert grown.layers[0].label == "layer"
    assert grown.layers[0].left.shape == (6, 4)


class Averages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).clone()
        y[:, 1] = 0
        y.view(x.shape[0] * 4)[1] = 7
        return y.sum(0) / x.shape[0]


def test_dynamic_sizes_survive_and_are_recorded() -> None:
    model = Averages()
    batch = torch.export.Dim("batch", min=2, max=64)

    graph = trace(model, (ROWS,), dynamic_shapes={"x": {0: batch}})

    for size in (2, 5, 64):
        x = torch.randn(size, 4)
        torch.testing.assert_close(graph(x), model(x))
    record = record_of(graph)
    assert list(record.range_constraints.values()) == [(2, 64)]
    assert record.example_shapes == {"x": (3, 4)}
