"""Weights in groups, from the configuration to every form of the graph."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy import load_lowered, lower, report_of
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.backends.torchao import TORCHAO
from embedl_deploy.engines import InductorEngine
from embedl_deploy.export import export_onnx
from embedl_deploy.quantize import (
    ModulesToSkip,
    Precision,
    QatConfig,
    QuantConfig,
    SmoothQuantConfig,
    TensorQuantConfig,
    WeightFakeQuantize,
    WeightRounding,
    check_qdq,
    convert,
    load_config,
    prepare_qat,
    quantization_report,
    quantize,
    save_config,
)
from embedl_deploy.rewriting.backend import Backend

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 3, 8, 8, generator=GENERATOR)
INT4, INT8 = Precision.INT4, Precision.INT8


class Transposed(nn.Module):
    """A linear layer the way GPT-2 spells it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 32) / 8)
        self.bias = nn.Parameter(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Net(nn.Module):
    """Yields what each layer gives: of 27 weights a row, 1×1 with norm, transposed and plain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3)
        self.wide = nn.Conv2d(32, 64, 1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.mix = Transposed()
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = torch.relu(self.stem(x))
        second = torch.relu(self.norm(self.wide(first)))
        third = torch.relu(self.mix(second.mean((2, 3))))
        return first, second, third, self.head(third)


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for _ in range(10):
        model(IMAGES)
    return model.eval()


def weight_only(precision: Precision = INT4, size: int = 16, **other: object) -> QuantConfig:
    weight = TensorQuantConfig(precision, group_size=size)
    return QuantConfig(activation=None, weight=weight, **other)  # pyright: ignore[reportArgumentType]  # fields by name


def grouped(backend: Backend = INDUCTOR, config: QuantConfig | None = None) -> GraphModule:
    return quantize(net(), (IMAGES,), config or weight_only(), backend=backend)


def refusals(graph: GraphModule) -> dict[str, str]:
    report = report_of(graph)
    assert report is not None
    (record,) = [one for one in report.passes if one.name == "quantization"]
    return {site.site: site.reason or "" for site in record.refused}


def assert_within_a_step(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for layer, reference in zip(found, expected, strict=True):
        step = float(reference.max() - reference.min()) / 255
        assert float((layer - reference).abs().max()) < 0.01 * step


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        (INDUCTOR, INT4),
        pytest.param(TORCHAO, INT8, marks=pytest.mark.slow),
        pytest.param(TENSORRT, INT4, marks=pytest.mark.slow),
    ],
)
def test_every_form_gives_the_same_layer_by_layer(
    backend: Backend, precision: Precision, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    rounded = grouped(backend, weight_only(precision))

    converted = convert(rounded)
    exported = torch.export.export(converted, (IMAGES,), strict=False).module()
    path = export_onnx(rounded, (IMAGES,), tmp_path / "model.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    with torch.no_grad():
        expected, exact = rounded(IMAGES), net()(IMAGES)
        assert_within_a_step(converted(IMAGES), expected)
        assert_within_a_step(exported(IMAGES), expected)
    outputs = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    assert_within_a_step([torch.from_numpy(output) for output in outputs], expected)
    error = float((expected[3] - exact[3]).norm() / exact[3].norm())
    low, high = (0.01, 0.3) if precision is INT4 else (0.001, 0.02)
    assert low < error < high
    assert check_qdq(rounded, backend) == check_qdq(converted, backend) == ()


def test_the_file_holds_packed_codes_and_a_scale_per_group(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(export_onnx(grouped(), (IMAGES,), tmp_path / "model.onnx"))).graph

    stored = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    attributes = [{one.name: one.i for one in node.attribute} for node in layers]
    assert attributes == [{"axis": 1, "block_size": 16}] * 3
    codes, scales = ([stored[node.input[place]] for node in layers] for place in (0, 1))
    assert {onnx.TensorProto.DataType.Name(one.data_type) for one in codes} == {"INT4"}
    assert [list(one.dims) for one in codes] == [[64, 32], [32, 64], [5, 32]]
    assert [list(one.dims) for one in scales] == [[64, 2], [32, 4], [5, 2]]
    assert "Cast" not in {node.op_type for node in graph.node}


def test_the_rest_may_be_in_a_short_type(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    export_onnx(grouped(), (IMAGES,), path, rest_dtype=torch.float16)
    graph = onnx.load(str(path)).graph

    stored = {tensor.name: tensor for tensor in graph.initializer}
    scales = [stored[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear"]
    assert {onnx.TensorProto.DataType.Name(scale.data_type) for scale in scales} == {"FLOAT16"}


def test_a_layer_that_no_group_fits_stays_in_float_and_is_named() -> None:
    config = QuantConfig(weight=TensorQuantConfig(INT4, group_size=16))
    graph = quantize(net(), (IMAGES,), config, forward_loop=[IMAGES], backend=INDUCTOR)

    (reason,) = refusals(graph).values()
    assert reason == (
        "each output has 27 weights, which group_size=16 does not divide: choose a size that does, "
        "or one scale per channel"
    )
    layers = quantization_report(graph, [IMAGES]).layers
    assert [(one.module, one.precision) for one in layers] == [
        ("stem", "float32"),
        ("wide", "int8 × int4"),
        ("mix", "int8 × int4"),
        ("head", "int8 × int4"),
    ]
    assert layers[0].reason == reason
    # Half a byte a weight, and four for the scale of 16.
    assert [one.weight_bytes for one in layers[1:]] == [
        count // 2 + count // 16 * 4 for count in (64 * 32, 32 * 64, 5 * 32)
    ]


def test_the_rows_of_a_transposed_layer_are_those_of_its_outputs() -> None:
    reasons = refusals(grouped(TORCHAO, weight_only(size=64)))

    assert sum("has 32 weights, which" in one for one in reasons.values()) == 1, "the head alone"
    assert sum("does not divide" in one for one in reasons.values()) == 1


def test_a_skipped_weight_is_not_asked_for_groups() -> None:
    config = weight_only(size=24, skip=ModulesToSkip(weight=frozenset({"wide", "mix", "head"})))

    reasons = refusals(grouped(config=config)).values()

    assert sum("which group_size=24 does not divide" in one for one in reasons) == 1
    assert sum("skip.weight names it" in one for one in reasons) == 3


def test_transposed_convolutions_have_no_groups() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 2), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    image = torch.randn(1, 8, 4, 4, generator=GENERATOR)

    graph = quantize(model, (image,), weight_only(size=8), backend=INDUCTOR)

    assert any("ConvTranspose2d has no groups" in one for one in refusals(graph).values())
    with torch.no_grad():
        torch.testing.assert_close(convert(graph)(image), graph(image))


def test_smoothing_leaves_layers_alone_that_no_group_fits() -> None:
    model = nn.Sequential(nn.LayerNorm(20), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    rows = torch.randn(64, 20, generator=GENERATOR) * torch.logspace(-1, 1, 20)
    config = QuantConfig(
        weight=TensorQuantConfig(INT4, group_size=8), smooth=SmoothQuantConfig(0.5)
    )

    graph = quantize(model, (rows,), config, forward_loop=[rows], backend=INDUCTOR)

    assert any("which group_size=8 does not divide" in one for one in refusals(graph).values())


def test_codes_chosen_together_leave_less_error_than_the_nearest() -> None:
    rows = torch.randn(128, 32, generator=GENERATOR) @ torch.randn(32, 32, generator=GENERATOR)
    torch.manual_seed(0)
    model = nn.Linear(32, 16).eval()
    errors: list[float] = []
    for rounding in WeightRounding:
        config = weight_only(weight_rounding=rounding, bias_correction=False)
        graph = quantize(model, (rows,), config, forward_loop=[rows], backend=TORCHAO)
        with torch.no_grad():
            errors.append(float((graph(rows) - model(rows)).square().sum()))
            torch.testing.assert_close(convert(graph)(rows), graph(rows))

    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.8 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_that_read_onnx_run_groups(engine: str) -> None:
    pytest.importorskip(engine)
    rounded = grouped()

    result = lower(rounded, (IMAGES,), engines=[engine, "eager"])

    assert set(result.report.engines.values()) == {engine}
    with torch.no_grad():
        assert_within_a_step(result(IMAGES), rounded(IMAGES))


def test_an_engine_without_groups_says_which_has_them() -> None:
    nodes = convert(grouped()).graph.nodes
    refused = [refusal for node in nodes if (refusal := InductorEngine().supports(node))]

    assert len(refused) == 3
    assert {one.reason for one in refused} == {
        "Inductor has no kernel for weights in groups: take openvino or onnxruntime"
    }


def test_a_lowered_model_is_saved_with_its_groups(tmp_path: Path) -> None:
    rounded = grouped()
    result = lower(rounded, (IMAGES,), engines=["eager"], allow_simulated=True)

    result.save(tmp_path / "model.deploy")
    again = load_lowered(tmp_path / "model.deploy")

    with torch.no_grad():
        assert_within_a_step(again(IMAGES), rounded(IMAGES))


def test_frozen_scales_travel_in_the_state() -> None:
    first = quantize(net(), (IMAGES,), weight_only(), freeze_weights=True, backend=INDUCTOR)
    torch.manual_seed(1)
    other = Net().eval()
    second = quantize(other, (IMAGES,), weight_only(), freeze_weights=True, backend=INDUCTOR)

    second.load_state_dict(first.state_dict())

    with torch.no_grad():
        assert_within_a_step(second(IMAGES), first(IMAGES))


def test_the_configuration_is_kept_as_json(tmp_path: Path) -> None:
    save_config(weight_only(size=64), tmp_path / "config.json")

    assert load_config(tmp_path / "config.json") == weight_only(size=64)


def test_groups_are_trained_and_converted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    rows = torch.randn(64, 32, generator=GENERATOR)
    labels = rows.mean(1).gt(0).long()
    graph = quantize(model, (rows,), weight_only(), backend=INDUCTOR)
    training = prepare_qat(graph, QatConfig(learned_steps=True))
    optimizer = torch.optim.AdamW(training.parameter_groups(), lr=1e-2)
    losses: list[float] = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(training.model(rows), labels)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.step()

    finished = training.finish()

    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        torch.testing.assert_close(convert(finished)(rows), finished(rows))


def test_the_check_names_scales_that_do_not_go_with_their_groups() -> None:
    graph = grouped()
    quantizer = [part for part in graph.modules() if isinstance(part, WeightFakeQuantize)][-1]
    quantizer.frozen = True
    quantizer.scale = torch.ones(5, 1)

    findings = check_qdq(graph, INDUCTOR)

    assert [one.code for one in findings] == ["QDQ005"]


def test_the_check_sees_the_groups_of_a_converted_graph() -> None:
    config = QuantConfig(weight=TensorQuantConfig(INT4, group_size=16))
    converted = convert(quantize(net(), (IMAGES,), config, forward_loop=[IMAGES], backend=INDUCTOR))
    assert check_qdq(converted, INDUCTOR) == ()

    wide = converted.get_submodule("wide")
    wide.weight_scale = torch.ones(64, 1)

    assert [one.code for one in check_qdq(converted, INDUCTOR)] == ["QDQ005"]
