"""Activations whose scale is computed at run time, from the configuration to the engines."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy import lower, report_of
from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.backends.torchao import TORCHAO
from embedl_deploy.engines import (
    Engine,
    InductorEngine,
    OnnxRuntimeEngine,
    OnnxRuntimeEngineConfig,
    OpenVINOEngine,
    TorchAOEngine,
)
from embedl_deploy.engines.integer_products import put_integer_layers
from embedl_deploy.engines.tensorrt_library import why_not
from embedl_deploy.errors import CalibrationError, QuantizationError
from embedl_deploy.export import export_onnx
from embedl_deploy.quantize import (
    Dynamic,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    calibrate,
    calibration_state,
    check_qdq,
    convert,
    insert_qdq,
    load_calibration_state,
    load_config,
    prepare_qat,
    quantization_report,
    quantize,
    save_config,
)
from embedl_deploy.rewriting import PassRecord
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.transformation import transform

GENERATOR = torch.Generator().manual_seed(0)
ROWS = (torch.randn(4, 12, 32, generator=GENERATOR) + 0.2) * torch.logspace(-2, 1, 12)[:, None]
OTHER = torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(1)) * 30
PER_TOKEN, PER_TENSOR = Dynamic.PER_TOKEN, Dynamic.PER_TENSOR
KINDS = [
    (TORCHAO, PER_TOKEN, True),
    (TORCHAO, PER_TOKEN, False),
    (TORCHAO, PER_TENSOR, False),
    (INDUCTOR, PER_TENSOR, False),
]
ANY_KIND = pytest.mark.parametrize(("backend", "dynamic", "symmetric"), KINDS)


class Net(nn.Module):
    """Yields what each of three linear layers gives, one of them behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.norm = nn.LayerNorm(64)
        self.second = nn.Linear(64, 32)
        self.third = nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = torch.relu(self.first(x))
        second = self.second(self.norm(first))
        return first, second, self.third(second)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def config(dynamic: Dynamic, symmetric: bool = True) -> QuantConfig:
    return QuantConfig(activation=TensorQuantConfig(symmetric=symmetric, dynamic=dynamic))


def without_data(
    backend: Backend = TORCHAO, dynamic: Dynamic = PER_TOKEN, symmetric: bool = True
) -> GraphModule:
    return quantize(net(), (ROWS,), config(dynamic, symmetric), backend=backend)


def assert_agrees(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for layer, reference in zip(found, expected, strict=True):
        step = float(reference.max() - reference.min()) / 255
        assert float((layer - reference).abs().max()) < 0.05 * step


@ANY_KIND
def test_every_form_gives_the_same_layer_by_layer_without_data(
    backend: Backend, dynamic: Dynamic, symmetric: bool
) -> None:
    rounded = without_data(backend, dynamic, symmetric)

    converted = convert(rounded)
    exported = torch.export.export(converted, (ROWS,), strict=False).module()
    integers = convert(rounded)

    assert put_integer_layers(integers) == 3
    with torch.no_grad():
        for x in (ROWS, OTHER):
            expected, exact = rounded(x), net()(x)
            assert_agrees(converted(x), expected)
            assert_agrees(exported(x), expected)
            assert_agrees(integers(x), expected)
            assert 0.0005 < float((expected[0] - exact[0]).norm() / exact[0].norm()) < 0.02
    assert check_qdq(rounded, backend) == check_qdq(converted, backend) == ()


def test_a_small_token_beside_a_large_one_keeps_its_precision() -> None:
    with torch.no_grad():
        exact = net()(ROWS)[0][:, 0]
        errors = [
            float((without_data(dynamic=dynamic)(ROWS)[0][:, 0] - exact).norm() / exact.norm())
            for dynamic in (PER_TOKEN, PER_TENSOR)
        ]

    assert errors[0] < 0.01 < 0.05 < errors[1]


@pytest.mark.parametrize(("dynamic", "symmetric"), [(PER_TOKEN, False), (PER_TENSOR, False)])
def test_onnx_runtime_computes_the_same(dynamic: Dynamic, symmetric: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    rounded = without_data(TORCHAO, dynamic, symmetric)

    path = export_onnx(rounded, (ROWS,), tmp_path / "model.onnx")

    operations = [node.op_type for node in onnx.load(str(path)).graph.node]
    # Per token ONNX has no operation: it is written out.
    assert operations.count("QuantizeLinear") == (0 if dynamic is PER_TOKEN else 3)
    assert operations.count("Round") == (6 if dynamic is PER_TOKEN else 3)
    options = runtime.SessionOptions()
    # Else it rounds the inputs of MatMul once more, in blocks of its own.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: OTHER.numpy()})
    with torch.no_grad():
        assert_agrees([torch.from_numpy(one) for one in found], rounded(OTHER))


def test_dynamic_shapes_stay_dynamic() -> None:
    rounded = without_data()

    program = torch.export.export(
        convert(rounded), (ROWS,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )

    with torch.no_grad():
        assert_agrees(program.module()(OTHER[:3]), rounded(OTHER[:3]))


def test_static_activations_without_data_still_raise() -> None:
    with pytest.raises(CalibrationError, match=r"need data.*activation=None\) or a dynamic"):
        quantize(net(), (ROWS,), QuantConfig(), backend=TORCHAO)


def test_with_data_layers_are_smoothed_and_biases_corrected() -> None:
    outliers = ROWS * torch.where(torch.arange(32) == 3, 40.0, 1.0)
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    with torch.no_grad():
        norm = model[0]
        assert isinstance(norm, nn.LayerNorm)
        norm.weight[3] = 60.0

    graph = quantize(
        model, (outliers,), config(PER_TOKEN), forward_loop=[outliers], backend=TORCHAO
    )
    plain = quantize(model, (outliers,), config(PER_TOKEN), backend=TORCHAO)

    notes = [note for one in _passes(graph) for note in one.notes]
    assert "activations: int8 symmetric per token at run time, nothing to calibrate" in notes
    assert "0 activations calibrated on 1 forward passes" in notes
    assert "2 biases corrected" in notes
    assert calibration_state(graph) == {}
    with torch.no_grad():
        errors = [float((one(outliers) - model(outliers)).norm()) for one in (graph, plain)]
        torch.testing.assert_close(convert(graph)(outliers), graph(outliers))
    assert errors[0] < 0.7 * errors[1]


class Reshaped(nn.Module):
    """Two linear layers that read one tensor, cut into tokens of other lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.short = nn.Linear(16, 8)
        self.long = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.long(x), self.short(x.reshape(4, 24, 16))


def test_a_reshape_does_not_join_two_scales() -> None:
    model = Reshaped().eval()

    graph = quantize(model, (ROWS,), config(PER_TOKEN), backend=TORCHAO)

    assert [type(one).__name__ for one in graph.modules()].count("DynamicStub") == 2
    with torch.no_grad():
        tokens = ROWS.reshape(4, 24, 16)
        alone = quantize(model.short, (tokens,), config(PER_TOKEN), backend=TORCHAO)
        assert_agrees(graph(ROWS)[1:], [alone(tokens)])
        assert_agrees(convert(graph)(ROWS), graph(ROWS))


def test_an_interrupted_calibration_goes_on() -> None:
    inserted = [
        insert_qdq(
            transform(net(), (ROWS,), backend=TORCHAO).model,
            config=config(PER_TOKEN),
            backend=TORCHAO,
        )
        for _ in range(3)
    ]

    def interrupted() -> Iterator[Tensor]:
        yield ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(inserted[0], interrupted())
    load_calibration_state(inserted[1], calibration_state(inserted[0]))
    calibrate(inserted[1], [OTHER])

    calibrate(inserted[2], [ROWS, OTHER])
    with torch.no_grad():
        assert_agrees(inserted[1](ROWS), inserted[2](ROWS))
        assert not torch.equal(inserted[0](ROWS)[0], inserted[2](ROWS)[0])


def test_a_convolution_stays_in_float_and_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)).eval()
    image = torch.randn(2, 3, 4, 4)

    graph = quantize(model, (image,), config(PER_TENSOR, False), backend=INDUCTOR)

    layers = quantization_report(graph, [image]).layers
    assert [(one.module, one.precision) for one in layers] == [("0", "float32"), ("3", "int8")]
    assert "scales at run time are for linear layers, this is FusedConv" in (layers[0].reason or "")
    assert check_qdq(graph, INDUCTOR) == ()


@pytest.mark.parametrize(
    ("backend", "dynamic", "known"),
    [(TENSORRT, PER_TOKEN, "none"), (INDUCTOR, PER_TOKEN, "PER_TENSOR")],
)
def test_a_backend_without_kernels_says_what_it_has(
    backend: Backend, dynamic: Dynamic, known: str
) -> None:
    with pytest.raises(QuantizationError) as raised:
        without_data(backend, dynamic)

    assert str(raised.value) == (
        f"backend {backend.name!r} has no kernels for activation scales at run time, "
        f"{dynamic.name} (known: {known})"
    )


def refusals(engine: Engine, graph: GraphModule) -> set[str]:
    found = (engine.supports(node) for node in graph.graph.nodes)
    return {refusal.reason for refusal in found if refusal is not None}


def test_engines_say_what_they_cannot_run() -> None:
    per_token, per_tensor = (convert(without_data(dynamic=one)) for one in Dynamic)
    unsigned = convert(without_data(INDUCTOR, PER_TENSOR, False))

    assert "take the torchao engine" in " ".join(refusals(InductorEngine(), per_token))
    assert "take unsigned codes" in " ".join(refusals(InductorEngine(), per_tensor))
    assert refusals(InductorEngine(), unsigned) == set()
    for graph in (per_token, per_tensor, unsigned):
        assert refusals(TorchAOEngine(), graph) == set()
        for engine in (OnnxRuntimeEngine(), OpenVINOEngine()):
            (reason,) = refusals(engine, graph)
            assert "computes in float where a scale is computed at run time" in reason
    simulated = OnnxRuntimeEngine(OnnxRuntimeEngineConfig(allow_simulated=True))
    assert refusals(simulated, per_token) == set()
    assert _tensorrt(per_token) == _tensorrt(per_tensor) == 6


def test_a_view_between_a_token_and_its_product_is_refused() -> None:
    graph = convert(without_data())
    product = next(n for n in graph.graph.nodes if n.target is torch.ops.aten.linear.default)
    values = product.args[0]
    assert isinstance(values, Node)
    with graph.graph.inserting_before(product):
        view = graph.graph.call_function(torch.ops.aten.view.default, (values, [48, 32]))
    view.meta["val"] = values.meta["val"].view(48, 32)
    product.update_arg(0, view)

    reasons = refusals(TorchAOEngine(), graph)

    assert "the activation is reshaped between its scale at run time and the product" in reasons


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "dynamic", "symmetric", "kernels"),
    [
        (TORCHAO, PER_TOKEN, False, {"int_mm": 3}),
        (TORCHAO, PER_TENSOR, True, {"int_mm": 3}),
        (INDUCTOR, PER_TENSOR, False, {"qlinear": 3}),
    ],
)
def test_engines_run_integer_kernels(
    backend: Backend, dynamic: Dynamic, symmetric: bool, kernels: dict[str, int]
) -> None:
    rounded = without_data(backend, dynamic, symmetric)

    result = lower(rounded, (ROWS,), engines=[backend.name, "eager"])

    assert [dict(part.kernels) for part in result.report.subgraphs] == [kernels]
    with torch.no_grad():
        assert_agrees(result(ROWS), rounded(ROWS))
        assert_agrees(result(OTHER), rounded(OTHER))


def test_four_bit_weights_in_groups_go_with_tokens() -> None:
    asked = QuantConfig(
        activation=TensorQuantConfig(symmetric=False, dynamic=PER_TOKEN),
        weight=TensorQuantConfig(Precision.INT4, group_size=16),
    )

    graph = quantize(net(), (ROWS,), asked, backend=TORCHAO)

    with torch.no_grad():
        assert_agrees(convert(graph)(ROWS), graph(ROWS))
    layers = quantization_report(graph, [ROWS]).layers
    assert [one.precision for one in layers] == ["int8 × int4"] * 3


@pytest.mark.parametrize("dynamic", list(Dynamic))
def test_the_check_sees_them_before_and_after_conversion(dynamic: Dynamic) -> None:
    rounded = without_data(dynamic=dynamic)

    for graph in (rounded, convert(rounded)):
        findings = check_qdq(graph, INDUCTOR)
        assert [one.code for one in findings] == ["QDQ004"] * 3, "its codes are unsigned"


def test_it_is_trained_and_converted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    rows = torch.randn(64, 32)
    labels = rows.mean(1).gt(0).long()
    training = prepare_qat(quantize(model, (rows,), config(PER_TOKEN), backend=TORCHAO))
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


def test_the_configuration_is_kept_as_json(tmp_path: Path) -> None:
    save_config(config(PER_TOKEN), tmp_path / "config.json")

    assert load_config(tmp_path / "config.json") == config(PER_TOKEN)


def _passes(graph: GraphModule) -> Sequence[PassRecord]:
    report = report_of(graph)
    assert report is not None
    return report.passes


def _tensorrt(graph: GraphModule) -> int:
    """Returns how many nodes TensorRT refuses for their scale."""
    reasons = [why_not(node) or "" for node in graph.graph.nodes]
    return sum("computed at run time" in reason for reason in reasons)
