from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.backends.torchao import TORCHAO
from embedl_deploy.errors import QuantizationError
from embedl_deploy.graph import module_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.carried_values import op_name
from embedl_deploy.quantization import QuantStub, WeightFakeQuantize
from embedl_deploy.quantize import (
    ModulesToSkip,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    check_qdq,
    convert,
    insert_qdq,
    quantize,
)
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.transformation import transform

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Convolutions, a transposed one, pooling, concatenation, a residual add and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, 6, 1)
        self.right = nn.ConvTranspose2d(4, 6, 3, padding=1)
        self.join = nn.Conv2d(12, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.cat([self.left(x), self.right(x)], 1)
        y = self.join(nn.functional.max_pool2d(y, 2)) + nn.functional.max_pool2d(x, 2)
        return self.head(y.mean((2, 3)))


def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


@cache
def _quantized(backend: str) -> GraphModule:
    return quantize(branches(), (IMAGE,), forward_loop=[IMAGE], backend=backend)


def quantized(backend: Backend = TENSORRT) -> GraphModule:
    return deepcopy(_quantized(backend.name))


def codes(model: GraphModule, backend: Backend = TENSORRT) -> list[str]:
    return [finding.code for finding in check_qdq(model, backend)]


def layer(model: GraphModule, name: str) -> tuple[Node, WeightedFused]:
    node = next(node for node in model.graph.nodes if node.name.startswith(name))
    module = module_of(node)
    assert isinstance(module, WeightedFused)
    return node, module


def stub_of(node: Node) -> QuantStub:
    module = module_of(node.all_input_nodes[0])
    assert isinstance(module, QuantStub)
    return module


def unround(node: Node) -> None:
    node.args = (node.all_input_nodes[0].all_input_nodes[0], *node.args[1:])


def calls(model: GraphModule, name: str) -> list[Node]:
    return [node for node in model.graph.nodes if op_name(node) == name]


def add_stub(model: GraphModule, value: Node, scale: float) -> Node:
    """Puts a calibrated quantizer on ``value`` that nothing reads yet."""
    stub = QuantStub(TensorQuantConfig())
    stub.quantizing = True
    stub.scale.fill_(scale)
    model.add_submodule("planted", stub)
    with model.graph.inserting_after(value):
        planted = model.graph.call_module("planted", (value,))
    planted.meta["val"] = value.meta["val"]
    return planted


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT, TORCHAO], ids=lambda b: b.name)
def test_finds_nothing_in_what_quantize_and_convert_return(backend: Backend) -> None:
    model = quantized(backend)

    assert check_qdq(model) == ()
    assert check_qdq(convert(model)) == ()
    assert report_of(model).passes[-1].name == "check"
    assert report_of(model).passes[-1].notes == ()


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(activation=None),
        QuantConfig(weight=None),
        QuantConfig(
            TensorQuantConfig(Precision.FP8_E4M3),
            TensorQuantConfig(Precision.FP8_E4M3, per_channel=True),
        ),
        QuantConfig(skip=ModulesToSkip(stub={"left"}, weight={"left", nn.Linear})),
        QuantConfig(weight=TensorQuantConfig(per_channel=False)),
    ],
    ids=["weights alone", "activations alone", "float8", "skipped", "per tensor"],
)
def test_takes_what_a_configuration_asked_for(config: QuantConfig) -> None:
    model = quantize(branches(), (IMAGE,), config, forward_loop=[IMAGE], backend=TENSORRT)

    assert check_qdq(model) == ()
    assert check_qdq(convert(model)) == ()


def test_001_a_layer_that_reads_a_float_activation() -> None:
    model = quantized()
    node, _ = layer(model, "left")
    unround(node)

    assert codes(model) == ["QDQ001"]
    assert codes(convert(model)) == ["QDQ001"]
    finding = check_qdq(model)[0]
    assert finding.node == node.name
    assert "the weight is rounded and the activation is in float" in finding.message
    assert "test_qdq_check.py" in str(finding)


def test_001_a_layer_whose_weight_is_in_float() -> None:
    model = quantized()
    layer(model, "left")[1].weight_fake_quant = None

    assert codes(model) == ["QDQ001"]


def test_002_two_quantizers_on_one_tensor() -> None:
    model = quantized()
    node, _ = layer(model, "left")
    value = node.all_input_nodes[0].all_input_nodes[0]
    node.args = (add_stub(model, value, 0.02),)

    assert codes(model) == ["QDQ002"]
    assert codes(convert(model)) == ["QDQ002"]


def test_002_a_tensor_rounded_twice_to_the_same_codes() -> None:
    model = quantized()
    node, _ = layer(model, "left")
    first = node.all_input_nodes[0]
    with model.graph.inserting_after(first):
        second = model.graph.call_module(str(first.target), (first,))
    node.args = (second,)

    assert codes(model) == ["QDQ002"]


def test_an_explicit_requantization_is_fine() -> None:
    model = quantized()
    node, _ = layer(model, "left")
    node.args = (add_stub(model, node.all_input_nodes[0], 0.02),)

    assert codes(model) == []
    assert codes(convert(model)) == []


def test_003_another_scale_behind_a_max_pool() -> None:
    model = quantized()
    node, _ = layer(model, "join")
    pool = node.all_input_nodes[0].all_input_nodes[0]
    stub = add_stub(model, pool.all_input_nodes[0], 0.5)
    pool.args = (stub,)

    assert codes(model) == ["QDQ003"]
    assert codes(convert(model)) == ["QDQ003"]


def test_003_another_scale_before_a_concatenation() -> None:
    model = quantized()
    cat = calls(model, "cat")[0]
    left, right = cat.all_input_nodes
    cat.args = ([left, add_stub(model, right, 0.5)], 1)

    assert codes(model) == ["QDQ003"]


def test_004_codes_of_another_type() -> None:
    assert set(codes(quantized(INDUCTOR), TENSORRT)) == {"QDQ004"}
    assert set(codes(convert(quantized(INDUCTOR)), TENSORRT)) == {"QDQ004"}


def test_004_a_zero_point_where_the_target_takes_none() -> None:
    model = quantized()
    stub_of(layer(model, "left")[0]).zero_point.fill_(3)

    assert codes(model) == ["QDQ004"]
    assert codes(convert(model)) == ["QDQ004"]


def test_004_a_weight_with_a_zero_point() -> None:
    model = quantized()
    quantizer = layer(model, "left")[1].weight_fake_quant
    assert isinstance(quantizer, WeightFakeQuantize)
    quantizer.zero_point.fill_(3)

    assert codes(model) == ["QDQ004"]


@pytest.mark.parametrize("name", ["left", "right", "linear"])
def test_005_scales_along_the_axis_of_inputs(name: str) -> None:
    model = quantized()
    _, module = layer(model, name)
    axis, shape = 1 - module.weight_axis, module.folded_weight_and_bias()[0].shape
    module.weight_fake_quant = WeightFakeQuantize(
        TensorQuantConfig(per_channel=True), shape, axis=axis
    )

    assert codes(model) == ["QDQ005"]


def test_005_a_converted_weight_with_scales_along_the_axis_of_inputs() -> None:
    model = convert(quantized())
    node = next(node for node in calls(model, "dequantize_per_channel"))
    node.args = (*node.args[:3], 1, *node.args[4:])

    assert codes(model) == ["QDQ005"]


class ConvThenRelu(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.after, self.then = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), then

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.then(self.conv(x)))


@pytest.mark.parametrize(
    "then", [nn.ReLU(), nn.SiLU(), nn.BatchNorm2d(4)], ids=["relu", "silu", "norm"]
)
def test_006_a_quantizer_before_what_the_target_fuses(then: nn.Module) -> None:
    model = ConvThenRelu(then).eval()
    unfused = transform(model, (IMAGE,), patterns=(), backend=TENSORRT).model
    graph = quantize(unfused, forward_loop=[IMAGE], backend=TENSORRT)
    conv = next(node for node in graph.graph.nodes if node.name == "conv")
    follower = next(iter(conv.users))
    follower.args = (add_stub(graph, conv, 0.1),)

    assert "QDQ006" in codes(graph)
    assert "QDQ006" in codes(convert(graph))
    assert "QDQ006" not in codes(graph, replace(TENSORRT, fusion_patterns=()))


def test_007_a_float_layer_between_layers_in_low_precision() -> None:
    model = quantized()
    node, module = layer(model, "join")
    unround(node)
    module.weight_fake_quant = None
    model.graph.eliminate_dead_code()

    assert codes(model) == ["QDQ007"]
    assert codes(convert(model)) == ["QDQ007"]


def test_a_float_layer_at_the_end_is_no_island() -> None:
    model = quantized()
    node, module = layer(model, "linear")
    unround(node)
    module.weight_fake_quant = None
    model.graph.eliminate_dead_code()

    assert codes(model) == []


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_008_a_scale_that_means_nothing(scale: float) -> None:
    model = quantized()
    stub_of(layer(model, "left")[0]).scale.fill_(scale)

    assert codes(model) == ["QDQ008"]


def test_008_a_zero_point_outside_of_the_codes() -> None:
    model = quantized(INDUCTOR)
    stub_of(layer(model, "left")[0]).zero_point.fill_(300)

    assert codes(model, INDUCTOR) == ["QDQ008"]


def test_008_a_quantizer_that_was_never_calibrated() -> None:
    inserted = insert_qdq(transform(branches(), (IMAGE,), backend=TENSORRT).model)

    assert set(codes(inserted)) == {"QDQ008"}


def test_009_a_quantizer_that_only_loses_precision() -> None:
    model = quantized()
    mean = calls(model, "mean")[0]
    mean.args = (add_stub(model, mean.all_input_nodes[0], 0.1), *mean.args[1:])

    assert codes(model) == ["QDQ009"]
    assert codes(convert(model)) == ["QDQ009"]


def test_010_a_dequantize_of_another_scale() -> None:
    model = convert(quantized())
    node = calls(model, "dequantize_per_tensor")[1]
    node.args = (node.args[0], 0.5, *node.args[2:])

    assert "QDQ010" in codes(model)


def test_010_codes_that_are_read_as_values() -> None:
    model = convert(quantized())
    node = calls(model, "conv2d")[0]
    node.args = (node.all_input_nodes[0].all_input_nodes[0], *node.args[1:])

    assert "QDQ010" in codes(model)


def test_a_target_without_quantizers_is_an_error() -> None:
    with pytest.raises(QuantizationError, match="no placement for quantizers"):
        check_qdq(quantized(), "lattice")
