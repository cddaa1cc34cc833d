import math

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.backend import Backend
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.errors import CalibrationError, PreconditionError
from embedl_deploy.graph import module_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.in_float import in_float
from embedl_deploy.quantization import QuantStub, WeightFakeQuantize
from embedl_deploy.quantization.stub import stubs_of
from embedl_deploy.quantize import (
    ModulesToSkip,
    QuantConfig,
    calibrate,
    insert_qdq,
    quantization_report,
    quantize,
)
from embedl_deploy.report.quantization_tables import precision_table, quality_table
from embedl_deploy.transformation import transform

BATCHES = list(torch.randn(8, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


class Net(nn.Module):
    """Three layers of unequal weight in the output, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + 0.05 * torch.tanh(self.body(x))
        rows = x.flatten(2).transpose(1, 2)
        return self.head((rows @ rows.transpose(1, 2)) @ rows)


def quantized(config: QuantConfig | None = None) -> GraphModule:
    torch.manual_seed(0)
    config = config or QuantConfig()
    return quantize(Net().eval(), (BATCHES[0],), config, BATCHES, backend=INDUCTOR)


def layer_and_stub(model: GraphModule, name: str) -> tuple[WeightedFused, QuantStub]:
    """Returns the fused module around the layer of this name, and the quantizer it reads."""
    own = model.get_submodule(name)
    for node in model.graph.nodes:
        layer = module_of(node)
        if isinstance(layer, WeightedFused) and layer.weighted is own:
            stub = module_of(node.all_input_nodes[0])
            assert isinstance(stub, QuantStub)
            return layer, stub
    raise AssertionError(f"no node runs {name}")


def test_one_layer_is_measured_as_by_hand() -> None:
    torch.manual_seed(0)
    model, rows = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(64, 8)
    graph = quantize(model, (rows,), forward_loop=[rows], backend=INDUCTOR)

    report = quantization_report(graph, [rows])

    reference = model(rows).detach().double()
    noise = (graph(rows).detach().double() - reference).square().sum()
    expected = float(10 * torch.log10(reference.square().sum() / noise))
    assert report.output_snr_db == pytest.approx(expected, rel=1e-4)
    (layer,) = report.layers
    assert layer.snr_db == pytest.approx(expected, rel=1e-4)
    assert layer.own_snr_db == pytest.approx(expected, rel=1e-4)
    assert layer.output_share == 1.0
    assert (layer.precision, layer.macs, layer.weight_bytes) == ("int8", 64 * 32, 32 + 4 * 4)
    assert report.macs == {"int8": 64 * 32}
    assert report.bytes == {"int8": 48, "float32": 16}


def test_shares_are_those_of_rounding_one_layer_at_a_time() -> None:
    model = quantized()

    report = quantization_report(model, BATCHES)

    alone = {name: error_of_one_layer(model, name) for name in ("stem", "body", "head")}
    total = sum(alone.values())
    found = {layer.module: layer.output_share for layer in report.layers if layer.output_share}
    assert sum(found.values()) == pytest.approx(1.0)
    for name, error in alone.items():
        assert found[name] == pytest.approx(error / total, abs=0.12)


class AddsItsInput(nn.Module):
    """A layer that adds what it reads: one value is two arguments of its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.relu(self.norm(self.body(x)) + x)


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT])
def test_a_layer_that_adds_its_own_input_is_measured(backend: Backend) -> None:
    torch.manual_seed(0)
    net = AddsItsInput().eval()
    model = quantize(net, (BATCHES[0],), QuantConfig(), BATCHES, backend=backend)

    report = quantization_report(model, BATCHES)

    body = next(layer for layer in report.layers if layer.module == "body")
    with torch.no_grad():
        signal = sum(float(net(batch).square().sum()) for batch in BATCHES)
    expected = 10 * math.log10(signal / error_of_one_layer(model, "body"))
    assert body.own_snr_db == pytest.approx(expected, rel=1e-4)
    assert body.snr_db == pytest.approx(report.output_snr_db)
    assert 0.0 < body.output_share < 1.0


def error_of_one_layer(model: GraphModule, name: str) -> float:
    """Returns the squared error of the output where one layer is rounded and no other."""
    (layer, stub), noise = layer_and_stub(model, name), 0.0
    quantizer = layer.weight_fake_quant
    assert isinstance(quantizer, WeightFakeQuantize)
    with torch.no_grad(), in_float(model) as saved:
        for batch in BATCHES:
            reference = model(batch)
            stub.quantizing, quantizer.quantizing = True, True
            layer.bias_correction = saved.corrections[layer]
            noise += float((model(batch) - reference).square().sum())
            stub.quantizing, quantizer.quantizing = False, False
            layer.bias_correction = None
    return noise


def test_a_spoiled_layer_comes_first() -> None:
    model = quantized()
    before = quantization_report(model, BATCHES[:2])
    layer_and_stub(model, "head")[1].scale.mul_(0.1)

    report = quantization_report(model, BATCHES[:2])

    assert report.worst(1)[0].module == "head"
    assert report.worst(1)[0].output_share > 0.9
    assert report.output_snr_db < before.output_snr_db - 10


def test_the_model_is_as_before() -> None:
    model = quantized()
    before, state = model(BATCHES[0]), {k: v.clone() for k, v in model.state_dict().items()}

    quantization_report(model, BATCHES[:1])

    assert torch.equal(model(BATCHES[0]), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_stays_in_float_has_a_reason() -> None:
    skip = ModulesToSkip(stub={"body"}, weight={"body"})

    report = quantization_report(quantized(QuantConfig(skip=skip)), BATCHES[:1])

    body = next(layer for layer in report.layers if layer.module == "body")
    assert body.precision == "float32"
    assert body.reason is not None
    assert "names it by name pattern 'body'" in body.reason
    products = [layer for layer in report.layers if "matmul" in layer.node]
    assert len(products) == 2
    assert all("no quantized pattern" in str(layer.reason) for layer in products)
    assert sum(report.macs.values()) == sum(layer.macs for layer in report.layers)
    assert report.share_of_macs("int8") + report.share_of_macs("float32") == pytest.approx(1.0)
    assert set(report.in_float()) == {body, *products}
    assert [layer.macs for layer in report.in_float()] == [16384 * 4, 16384 * 4, 36864]


@pytest.mark.parametrize("part", ["activation", "weight"])
def test_names_operands_that_are_rounded_alone(part: str) -> None:
    config = QuantConfig(activation=None) if part == "weight" else QuantConfig(weight=None)

    report = quantization_report(quantized(config), BATCHES[:1])

    kind = "weights" if part == "weight" else "activations"
    assert {layer.precision for layer in report.layers} == {f"int8 {kind}", "float32"}


def test_data_may_be_a_callable() -> None:
    model = quantized()

    def run(given: nn.Module) -> None:
        given(BATCHES[0])

    assert quantization_report(model, run) == quantization_report(model, BATCHES[:1])


def test_refuses_what_has_nothing_to_report() -> None:
    fused = transform(Net().eval(), (BATCHES[0],), backend=INDUCTOR).model
    inserted = insert_qdq(fused)

    with pytest.raises(PreconditionError, match="have no scale yet"):
        quantization_report(inserted, BATCHES)
    with pytest.raises(PreconditionError, match="in training mode"):
        quantization_report(calibrate(insert_qdq(fused), BATCHES).train(), BATCHES)
    with pytest.raises(CalibrationError, match="never ran"):
        quantization_report(quantized(), [])


def test_tables_show_every_layer_and_every_precision() -> None:
    report = quantization_report(quantized(), BATCHES[:1])
    console = Console(width=200)
    with console.capture() as captured:
        console.print(quality_table(report.layers), precision_table(report))
    text = captured.get()

    assert "multiply-accumulates in int8" in text
    assert f"{report.output_snr_db:.1f} dB" in text
    assert all((layer.module or layer.node) in text for layer in report.layers)


def test_every_node_that_yields_a_tensor_has_a_precision() -> None:
    model = quantized(QuantConfig(skip=ModulesToSkip(stub={"body"}, weight={"body"})))

    report = quantization_report(model, BATCHES[:1])

    nodes = [node for node in model.graph.nodes if node.op != "output"]
    assert list(report.nodes) == [node.name for node in nodes]
    stubs = [node.name for node in nodes if isinstance(module_of(node), QuantStub)]
    low = [name for name, precision in report.nodes.items() if precision == "int8"]
    layers = [layer.node for layer in report.layers if layer.precision == "int8"]
    assert sorted(low) == sorted([*stubs, *layers])
    assert report.nodes["matmul"] == report.nodes["x"] == "float32"


def test_bytes_are_those_of_each_weight_as_it_is_stored() -> None:
    report = quantization_report(quantized(), BATCHES[:1])

    weights, scales, biases = 4 * 27 + 4 * 36 + 5 * 4, 4 * (4 + 4 + 5), 4 * (4 + 4 + 5)
    assert report.bytes == {"int8": weights + scales, "float32": biases}
    assert report.share_of_bytes("int8") == pytest.approx(1 - report.share_of_bytes("float32"))


def test_a_second_calibration_sees_the_float_model() -> None:
    """A bias correction belongs to the rounded weights, which calibration takes out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    rows = [3.0 + torch.randn(4, 64) for _ in range(4)]
    graph = transform(model, (rows[0],), backend=INDUCTOR).model

    prepared = insert_qdq(graph)
    first = {name: stub.scale.clone() for name, stub in stubs_of(calibrate(prepared, rows))}
    again = {name: stub.scale for name, stub in stubs_of(calibrate(prepared, rows))}

    assert first
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(
        layer.bias_correction is not None
        for layer in prepared.modules()
        if isinstance(layer, WeightedFused)
    )
