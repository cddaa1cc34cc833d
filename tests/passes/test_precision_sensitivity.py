from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.errors import CalibrationError
from embedl_deploy.passes.precision_groups import config_without, groups_of
from embedl_deploy.passes.precision_sensitivity import (
    Method,
    Sensitivities,
    measure_sensitivities,
)
from embedl_deploy.quantize import QuantConfig, quantize
from embedl_deploy.transformation import transform

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(3, 3, 8, 8, generator=GENERATOR) for _ in range(4)]
CONFIG = QuantConfig(smooth=None)


class Net(nn.Module):
    """A residual block whose addend is read by its first layer and by a branch too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.second, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.side = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.second(torch.relu(self.body(x)))) + x) * torch.sigmoid(
            self.side(x)
        )
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def fused() -> GraphModule:
    torch.manual_seed(0)
    return transform(Net().eval(), (BATCHES[0],), backend=INDUCTOR).model


def measured(fused: GraphModule, method: Method, batches: list[Tensor] = BATCHES) -> Sensitivities:
    quantized = quantize(fused, config=CONFIG, forward_loop=BATCHES)
    groups = groups_of(quantized).groups
    known = Sensitivities([0.0] * len(groups))
    measure_sensitivities(quantized, groups, batches, method, known, lambda _: None)
    return known


def test_the_error_is_that_of_a_model_with_this_group_alone_quantized(fused: GraphModule) -> None:
    groups = groups_of(quantize(fused, config=CONFIG, forward_loop=BATCHES)).groups

    found = measured(fused, "output")

    for group, error in zip(groups, found.errors, strict=True):
        if group.name == "second":
            continue  # its addend is rounded only where another group rounds it anyway
        others = [other for other in groups if other is not group]
        alone = quantize(fused, config=config_without(CONFIG, others), forward_loop=BATCHES)
        with torch.no_grad():
            wanted = sum(float((alone(x) - fused(x)).square().sum()) for x in BATCHES)
        assert error == pytest.approx(wanted, rel=1e-3)
        assert error > 0.0
    with torch.no_grad():
        signal = sum(float(fused(x).square().sum()) for x in BATCHES)
    assert found.signal == pytest.approx(signal)
    assert found.batches == len(BATCHES)


def test_the_gradient_says_about_the_same(fused: GraphModule) -> None:
    output, gradient = measured(fused, "output"), measured(fused, "gradient")

    for one, other in zip(output.errors, gradient.errors, strict=True):
        assert 0.4 < other / one < 2.5
    assert gradient.signal == pytest.approx(output.signal)


def test_both_methods_measure_a_layer_that_adds_its_own_input(adds_its_input: nn.Module) -> None:
    graph = transform(adds_its_input, (BATCHES[0],), backend=INDUCTOR).model

    output, gradient = measured(graph, "output"), measured(graph, "gradient")

    assert output.errors[0] > 0.0
    assert gradient.errors[0] == pytest.approx(output.errors[0], rel=0.6)


@pytest.mark.parametrize("method", ["output", "gradient"])
def test_measuring_leaves_the_quantized_model_as_it_was(fused: GraphModule, method: Method) -> None:
    quantized = quantize(fused, config=CONFIG, forward_loop=BATCHES)
    groups = groups_of(quantized).groups
    with torch.no_grad():
        before = quantized(BATCHES[0])

        known = Sensitivities([0.0] * len(groups))
        measure_sensitivities(quantized, groups, BATCHES, method, known, lambda _: None)

        assert torch.equal(quantized(BATCHES[0]), before)


@pytest.mark.parametrize("method", ["output", "gradient"])
def test_goes_on_where_it_was_interrupted(fused: GraphModule, method: Method) -> None:
    quantized = quantize(fused, config=CONFIG, forward_loop=BATCHES)
    groups = groups_of(quantized).groups
    known, seen = Sensitivities([0.0] * len(groups)), list[int]()

    def breaking() -> Iterator[Tensor]:
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivities(quantized, groups, breaking(), method, known, lambda _: None)
    measure_sensitivities(
        quantized, groups, BATCHES, method, known, lambda now: seen.append(now.batches)
    )

    assert known == measured(fused, method)
    assert seen == [3, 4]


def test_refuses_data_that_tells_nothing(fused: GraphModule) -> None:
    bad = torch.full_like(BATCHES[0], float("nan"))

    with pytest.raises(CalibrationError, match="never ran"):
        measured(fused, "output", [])
    with pytest.raises(CalibrationError, match="NaN or infinity in it on batch 1"):
        measured(fused, "output", [BATCHES[0], bad])
