from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.calibration import calibrate_model
from embedl_deploy.passes.quantization import (
    find_matches,
    own_modules,
    placement_of,
    quantize_graph,
)
from embedl_deploy.passes.single_pass import smooth_and_calibrate
from embedl_deploy.passes.smoothing import smooth_graph
from embedl_deploy.quantization import CalibrationMethod, QuantConfig, TensorQuantConfig
from embedl_deploy.quantization.stub import stubs_of
from embedl_deploy.rewriting import PassRecord
from embedl_deploy.transformation import transform

ROWS = 6


class Block(nn.Module):
    """One norm that linears alone read, one that an add reads too, and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.after = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        y = self.after(self.left(y) * self.right(y))
        return y + self.down(torch.nn.functional.gelu(self.up(y)))


def model() -> nn.Module:
    torch.manual_seed(0)
    block = Block().eval()
    with torch.no_grad():
        block.norm.weight[3] = 60.0
        block.after.weight[5] = -40.0
        block.after.bias.uniform_(-1.0, 1.0)
        block.up.weight[7] *= 50.0
    return block


def batches() -> list[Tensor]:
    return list(torch.randn(12, ROWS, 8, generator=torch.Generator().manual_seed(1)))


def float_graph() -> GraphModule:
    return own_modules(transform(model(), (batches()[0],), backend=INDUCTOR).model)


def in_two_passes(config: QuantConfig) -> tuple[GraphModule, PassRecord]:
    graph = float_graph()
    sites = find_matches(graph, INDUCTOR.smooth_patterns)
    smoothed = smooth_graph(graph, sites, config, batches(), placement_of(INDUCTOR))
    quantize_graph(graph, None, config, INDUCTOR)
    graph.recompile()
    calibrate_model(graph, batches())
    return graph, smoothed


def test_one_pass_finds_what_two_passes_find() -> None:
    expected, expected_smoothing = in_two_passes(QuantConfig())
    graph = float_graph()

    smoothed, *_ = smooth_and_calibrate(graph, QuantConfig(), batches(), INDUCTOR)

    assert smoothed.applied == expected_smoothing.applied
    assert {site.pattern for site in smoothed.applied} == {
        "move-outliers-into-linears",
        "scale-before-linears",
    }
    for (name, stub), (other, wanted) in zip(stubs_of(graph), stubs_of(expected), strict=True):
        assert name == other
        torch.testing.assert_close(stub.scale, wanted.scale, rtol=1e-5, atol=0.0)
        assert torch.equal(stub.zero_point, wanted.zero_point), name
    layers = [part for part in graph.modules() if isinstance(part, WeightedFused)]
    others = [part for part in expected.modules() if isinstance(part, WeightedFused)]
    for layer, wanted_layer in zip(layers, others, strict=True):
        assert layer.bias_correction is not None
        assert wanted_layer.bias_correction is not None
        torch.testing.assert_close(
            layer.bias_correction, wanted_layer.bias_correction, rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize(
    ("method", "passes"), [(CalibrationMethod.MINMAX, 1), (CalibrationMethod.HISTOGRAM, 2)]
)
def test_data_is_gone_through_once_unless_values_have_to_be_counted(
    method: CalibrationMethod, passes: int
) -> None:
    seen: list[int] = []
    ranges = TensorQuantConfig(symmetric=False, calibration_method=method)

    def loop(given: nn.Module) -> None:
        seen.append(1)
        for batch in batches():
            given(batch)

    smooth_and_calibrate(float_graph(), QuantConfig(activation=ranges), loop, INDUCTOR)

    assert len(seen) == passes


@pytest.mark.parametrize("method", [CalibrationMethod.MINMAX, CalibrationMethod.HISTOGRAM])
def test_data_may_come_from_an_iterator(method: CalibrationMethod) -> None:
    config = QuantConfig(activation=TensorQuantConfig(symmetric=False, calibration_method=method))
    told: list[int] = []
    graph, again = float_graph(), float_graph()
    data: Iterator[Tensor] = iter(batches())

    smooth_and_calibrate(graph, config, data, INDUCTOR, told.append)
    smooth_and_calibrate(again, config, batches(), INDUCTOR)

    assert told == list(range(1, 13))
    torch.testing.assert_close(graph(batches()[0]), again(batches()[0]), rtol=0, atol=0)


def test_a_model_with_nothing_to_smooth_is_calibrated_once() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    images = list(torch.randn(4, 2, 1, 8, 8, generator=torch.Generator().manual_seed(2)))
    graph = own_modules(transform(net, (images[0],), backend=INDUCTOR).model)
    told: list[int] = []

    smoothed, *_ = smooth_and_calibrate(graph, QuantConfig(), images, INDUCTOR, told.append)

    assert told == [1, 2, 3, 4]
    assert smoothed.applied == ()
    assert all(stub.quantizing for _, stub in stubs_of(graph))
