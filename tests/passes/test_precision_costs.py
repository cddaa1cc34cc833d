from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.passes.precision_costs import (
    ProcessorModel,
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
    without = GraphModule(nn.Module(), torch.fx.Graph())
    left: list[str] = []

    def build(left_out: Sequence[PrecisionGroup]) -> GraphModule:
        left.extend(group.name for group in left_out)
        return without

    def measure(graphs: Sequence[GraphModule]) -> list[float]:
        assert list(graphs) == [quantized, without]
        return [10.0, 13.0]

    saving = measured_savings(quantized, groups, groups[0].signature, build, measure)

    assert left == ["wide", "twin"]
    assert saving == 1.5
