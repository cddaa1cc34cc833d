"""What every form of a quantized graph computes, layer by layer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy import lower
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.engines import OnnxRuntimeEngineConfig
from embedl_deploy.quantize import (
    CalibrationMethod,
    QuantConfig,
    TensorQuantConfig,
    WeightRounding,
    convert,
    quantize,
)

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 3, 12, 12, generator=GENERATOR)
ROWS = torch.randn(16, 24, generator=GENERATOR) @ torch.randn(24, 24, generator=GENERATOR)


class Convolutions(nn.Module):
    """Yields what each of three convolutions gives: with norm, depthwise, and with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = torch.relu(self.norm(self.stem(x)))
        second = nn.functional.hardswish(self.depthwise(first))
        return first, second, self.project(second) + first


class Linears(nn.Module):
    """Yields what each of three linear layers gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 48)
        self.second = nn.Linear(48, 24)
        self.norm = nn.LayerNorm(24)
        self.third = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = nn.functional.gelu(self.first(x))
        second = self.second(first) + x
        return first, second, self.third(self.norm(second))


NETS: dict[str, tuple[type[nn.Module], Tensor]] = {
    "convolutions": (Convolutions, IMAGES),
    "linear layers": (Linears, ROWS),
}
CONFIGS = {
    "default": QuantConfig(),
    "histogram, rounded together, equalised": QuantConfig(
        activation=TensorQuantConfig(
            symmetric=False, calibration_method=CalibrationMethod.HISTOGRAM
        ),
        weight_rounding=WeightRounding.GPTQ,
        equalise=True,
    ),
}


def lowered_to(engine: str) -> Callable[[GraphModule, Tensor], nn.Module]:
    def form(simulated: GraphModule, x: Tensor) -> nn.Module:
        # ONNX Runtime multiplies integers only where the result is rounded again, not where it is
        # an output, as every layer's is here.
        asked = OnnxRuntimeEngineConfig(allow_simulated=True) if engine == "onnxruntime" else engine
        result = lower(simulated, (x,), engines=[asked, "eager"])
        assert set(result.report.engines.values()) == {engine}
        return result

    return form


def converted(simulated: GraphModule, x: Tensor) -> nn.Module:
    del x
    return convert(simulated)


FORMS = [
    pytest.param(converted, id="converted"),
    *(
        pytest.param(lowered_to(engine), id=engine, marks=pytest.mark.slow)
        for engine in ("inductor", "onnxruntime", "openvino")
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("form", FORMS)
def test_every_layer_agrees_within_one_step(
    form: Callable[[GraphModule, Tensor], nn.Module], net: str, config: str
) -> None:
    make, x = NETS[net]
    torch.manual_seed(0)
    model = make()
    for _ in range(20):
        model(x)  # the statistics of norms become those of the data
    simulated = quantize(model.eval(), (x,), CONFIGS[config], forward_loop=[x], backend=INDUCTOR)

    with torch.no_grad():
        expected, found, unrounded = simulated(x), form(simulated, x)(x), model(x)

    for layer, reference, exact in zip(found, expected, unrounded, strict=True):
        step = float(exact.max() - exact.min()) / 255
        assert float((layer - reference).abs().max()) < step
        assert float((reference - exact).abs().max()) > 0.1 * step, "nothing was rounded"
