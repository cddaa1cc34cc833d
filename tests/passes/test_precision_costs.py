from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.passes.precision_costs import (
    ProcessorModel,
    Savings,
    measured_savings,
    predicted_savings,
)
from embedl_deploy.passes.precision_groups import PrecisionGroup, groups_of
from embedl_deploy.passes.predicted_speed import prediction_at
from embedl_deploy.quantize import insert_qdq
from embedl_deploy.transformation import transform

IMAGE = torch.randn(1, 64, 16, 16)


class Net(nn.Module):
    """A wide convolution and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(64, 64, 3, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.twin = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(self.depthwise(self.wide(x)))


@pytest.fixture(scope="module")
def quantized() -> GraphModule:
    return insert_qdq(transform(Net().eval(), (IMAGE,), backend=INDUCTOR).model)


def test_a_processor_saves_what_the_formula_says(quantized: GraphModule) -> None:
    groups = groups_of(quantized).groups
    model = ProcessorModel(rate=1e9, speedup=4.0, bandwidth=1e9, call=1e-3)

    wide, depthwise, _ = model(quantized, groups)

    values, weight = 64 * 16 * 16, 64 * 64 * 9
    macs = values * 64 * 9
    assert wide == pytest.approx(1e3 * (macs / 1e9 * 0.75 - 5 * values / 1e9 - 1e-3))
    # Each of few multiply-accumulates costs as much in int8, and moving data less.
    in_float = max(values * 9, 4 * (2 * values + 64 * 9))
    in_int8 = max(values * 9, values + 64 * 9 + 4 * values)
    assert depthwise == pytest.approx(1e3 * ((in_float - in_int8 - 5 * values) / 1e9 - 1e-3))
    assert weight > values


def test_the_backends_table_is_asked_first(quantized: GraphModule) -> None:
    groups = groups_of(quantized).groups
    nodes = {node.name: node for node in quantized.graph.nodes}

    found = predicted_savings(quantized, groups)

    for group, saving in zip(groups, found, strict=True):
        prediction = prediction_at(nodes[group.nodes[0]])
        assert prediction is not None
        assert saving == prediction.bf16_ms - prediction.int8_ms


def test_without_a_table_the_processor_is_modelled() -> None:
    graph = transform(Net().eval(), (IMAGE,), backend=INDUCTOR).model
    quantized = insert_qdq(graph)
    for node in quantized.graph.nodes:
        node.meta.pop("predicted_speed", None)
    groups = groups_of(quantized).groups

    assert predicted_savings(quantized, groups) == ProcessorModel()(quantized, groups)


def test_what_equal_groups_save_together_is_shared_out_equally(quantized: GraphModule) -> None:
    groups = groups_of(quantized).groups
    in_float, alone, without = (GraphModule(nn.Module(), torch.fx.Graph()) for _ in range(3))
    built: list[list[str]] = []

    def build(kept: Sequence[PrecisionGroup]) -> GraphModule:
        built.append([group.name for group in kept])
        return (alone, without)[len(built) - 1]

    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        assert list(graphs) == [in_float, alone, without, quantized]
        return [20.0, 19.0, 13.0, 10.0]

    signature = groups[0].signature
    saving = measured_savings((in_float, quantized), groups, signature, build, measure)

    # Together they save 1 ms as the first to be quantized, 3 ms as the last.
    assert built == [["wide", "twin"], [name for name in names(groups) if name not in built[0]]]
    assert saving == (0.5, 1.5)


def names(groups: Sequence[PrecisionGroup]) -> list[str]:
    return [group.name for group in groups]


def test_savings_that_change_each_other_in_pairs_add_up(quantized: GraphModule) -> None:
    groups = groups_of(quantized).groups
    signatures = list(dict.fromkeys(group.signature for group in groups))
    counts = {GraphModule(nn.Module(), torch.fx.Graph()): frozenset[str]()}
    counts[quantized] = frozenset(signatures)
    ends = tuple(counts)
    assert len(ends) == 2

    def build(kept: Sequence[PrecisionGroup]) -> GraphModule:
        graph = GraphModule(nn.Module(), torch.fx.Graph())
        counts[graph] = frozenset(group.signature for group in kept)
        return graph

    def latency(graph: GraphModule) -> float:
        chosen = [at for at, signature in enumerate(signatures) if signature in counts[graph]]
        return (
            50.0
            - sum(at + 1 for at in chosen)
            + sum(b - a for a in chosen for b in chosen if a < b)
        )

    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        return list(map(latency, graphs))

    pairs = [measured_savings(ends, groups, group.signature, build, measure) for group in groups]
    savings = Savings(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))

    assert len(signatures) > 1
    assert savings.first != savings.last
    assert sum(savings.mean) == pytest.approx(latency(ends[0]) - latency(ends[1]))
