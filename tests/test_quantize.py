import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.lattice import LATTICE
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.errors import CalibrationError, PreconditionError, QuantizationError
from embedl_deploy.graph import graph_text, record_of
from embedl_deploy.passes.quantization import find_matches
from embedl_deploy.patterns.quantized import QuantizeConv, QuantizeLinear
from embedl_deploy.quantize import (
    ModulesToSkip,
    Precision,
    QuantConfig,
    QuantStub,
    TensorQuantConfig,
    WeightFakeQuantize,
    calibrate,
    convert,
    insert_qdq,
    quantize,
)
from embedl_deploy.rewriting import TransformationReport
from embedl_deploy.transformation import get_transformation_plan, transform

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """One residual block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


def residual() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def stubs(model: nn.Module) -> list[QuantStub]:
    return [module for module in model.modules() if isinstance(module, QuantStub)]


def relative_error(found: Tensor, reference: Tensor) -> float:
    with torch.no_grad():
        return float((found - reference).square().sum().sqrt() / reference.square().sum().sqrt())


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT])
def test_int8_stays_close_to_float_and_leaves_the_model_alone(backend: object) -> None:
    model = residual()
    before, state = model(IMAGE), {key: value.clone() for key, value in model.state_dict().items()}

    quantized = quantize(model, (IMAGE,), forward_loop=[IMAGE], backend=backend)  # pyright: ignore[reportArgumentType]

    assert 0 < relative_error(quantized(IMAGE), before) < 0.03
    assert torch.equal(model(IMAGE), before)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_a_transformed_graph_is_not_changed_either() -> None:
    fused = transform(residual(), (IMAGE,), backend=INDUCTOR).model
    before, text = fused(IMAGE), graph_text(fused)

    quantize(fused, (IMAGE,), forward_loop=[IMAGE])

    assert torch.equal(fused(IMAGE), before)
    assert graph_text(fused) == text
    assert not stubs(fused)


def test_the_graph_remembers_its_backend_and_its_report_goes_on() -> None:
    fused = transform(residual(), (IMAGE,), backend=TENSORRT).model

    quantized = quantize(fused, (IMAGE,), forward_loop=[IMAGE])

    report = record_of(quantized).report
    assert isinstance(report, TransformationReport)
    assert report.backend == "tensorrt"
    assert [record.name for record in report.passes][-4:] == [
        "quantization",
        "calibration",
        "bias correction",
        "check",
    ]
    assert report.counts()["quantize-conv"] == 3
    assert all(stub.grid.dtype == torch.int8 and stub.grid.symmetric for stub in stubs(quantized))


def test_a_residual_add_reads_the_tensor_that_is_quantized_anyway() -> None:
    quantized = quantize(residual(), (IMAGE,), forward_loop=[IMAGE], backend=INDUCTOR)

    text = graph_text(quantized)
    fused = next(line for line in text.splitlines() if "FusedConvBNAddReLU" in line)
    operands = fused.rpartition("(")[2]
    assert operands.count("%quant_stub") == 2
    assert len(stubs(quantized)) == 3


def test_the_steps_give_what_quantize_gives() -> None:
    fused = transform(residual(), (IMAGE,), backend=INDUCTOR).model
    whole = quantize(fused, (IMAGE,), forward_loop=[IMAGE])

    steps = calibrate(insert_qdq(fused), [IMAGE])

    assert torch.equal(steps(IMAGE), whole(IMAGE))


def test_insert_qdq_takes_matches_and_their_vetoes() -> None:
    fused = transform(residual(), (IMAGE,), backend=INDUCTOR).model
    matches = find_matches(fused, (QuantizeConv, QuantizeLinear))
    matches[0].apply = False

    inserted = insert_qdq(fused, matches, backend=INDUCTOR)

    assert len(stubs(inserted)) == 2
    assert not stubs(fused)


def test_insert_qdq_takes_the_matches_of_a_plan() -> None:
    fused = transform(residual(), (IMAGE,), backend=INDUCTOR).model
    patterns = (QuantizeConv, QuantizeLinear)
    plan = get_transformation_plan(fused, (IMAGE,), patterns=patterns, backend=INDUCTOR)
    next(plan.sites()).apply = False

    inserted = insert_qdq(fused, plan.matches)

    assert len(stubs(inserted)) == 2


def test_skip_rules_take_modules_of_the_model_that_was_given() -> None:
    model = residual()
    skip = ModulesToSkip(stub={model.stem}, weight={model.stem})

    quantized = quantize(
        model, (IMAGE,), QuantConfig(skip=skip), forward_loop=[IMAGE], backend=INDUCTOR
    )

    assert len(stubs(quantized)) == 2
    report = record_of(quantized).report
    assert isinstance(report, TransformationReport)
    assert {site.site for site in report.refusals() if "skip." in str(site.reason)} == {
        "fused_conv_relu"
    }


def test_frozen_weights_have_constant_scales() -> None:
    quantized = quantize(
        residual(), (IMAGE,), forward_loop=[IMAGE], freeze_weights=True, backend=INDUCTOR
    )

    weights = [module for module in quantized.modules() if isinstance(module, WeightFakeQuantize)]
    assert len(weights) == 3
    assert all(weight.frozen and bool((weight.scale != 1).any()) for weight in weights)


def test_weight_only_needs_no_data() -> None:
    config = QuantConfig(activation=None, weight=TensorQuantConfig(per_channel=True))

    quantized = quantize(residual(), (IMAGE,), config, backend=INDUCTOR)

    assert not stubs(quantized)
    torch.testing.assert_close(convert(quantized)(IMAGE), quantized(IMAGE))


def test_training_moves_the_weights_and_not_those_of_the_model() -> None:
    model = residual()
    quantized = quantize(model, (IMAGE,), forward_loop=[IMAGE], backend=INDUCTOR)
    before = model.conv.weight.clone()

    quantized.train()
    optimizer = torch.optim.SGD(quantized.parameters(), lr=0.1)
    quantized(IMAGE).square().sum().backward()
    optimizer.step()

    assert torch.equal(model.conv.weight, before)
    assert not torch.equal(quantized.get_parameter("conv.weight"), before)
    quantized.eval()
    torch.testing.assert_close(convert(quantized)(IMAGE), quantized(IMAGE))


def test_refuses_static_activations_without_data() -> None:
    with pytest.raises(CalibrationError, match="forward_loop=None"):
        quantize(residual(), (IMAGE,), backend=INDUCTOR)


def test_refuses_a_backend_that_quantizes_nothing() -> None:
    with pytest.raises(QuantizationError, match="'lattice' has no placement"):
        quantize(residual(), (IMAGE,), forward_loop=[IMAGE], backend=LATTICE)


def test_refuses_a_precision_the_target_lacks() -> None:
    config = QuantConfig(weight=TensorQuantConfig(Precision.INT16, per_channel=True))

    with pytest.raises(QuantizationError, match=r"weight precision INT16 \(known: INT8, INT4\)"):
        quantize(residual(), (IMAGE,), config, forward_loop=[IMAGE], backend=INDUCTOR)


def test_insert_qdq_refuses_a_model_that_was_never_traced() -> None:
    with pytest.raises(PreconditionError, match="call transform"):
        insert_qdq(torch.fx.symbolic_trace(residual()), backend=INDUCTOR)


def test_the_export_script_runs_as_it_stands(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "export_int8.py"
    spec = importlib.util.spec_from_file_location("export_int8", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    source, target = tmp_path / "float.pt2", tmp_path / "int8.pt2"
    module.save_float_model(source)

    module.quantize_program(source, target)

    inputs = torch.randn(2, 3, 16, 16), torch.randint(0, 100, (2, 5))
    expected = torch.export.load(source).module()(*inputs)
    assert 0 < relative_error(torch.export.load(target).module()(*inputs), expected) < 0.05
