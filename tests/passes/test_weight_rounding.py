from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.backends.torchao import TORCHAO
from embedl_deploy.errors import CalibrationError
from embedl_deploy.graph import record_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.layer_inputs import input_columns, weight_rows
from embedl_deploy.quantization.rounded_weight import RoundedWeight
from embedl_deploy.quantize import (
    Precision,
    QatConfig,
    QuantConfig,
    TensorQuantConfig,
    WeightRounding,
    calibrate,
    convert,
    insert_qdq,
    prepare_qat,
    quantize,
    round_weights,
)
from embedl_deploy.rewriting import TransformationReport
from embedl_deploy.transformation import transform

GENERATOR = torch.Generator().manual_seed(0)
MIXING = torch.randn(6, 6, generator=GENERATOR)
NOISE = functional.avg_pool2d(torch.randn(48, 6, 9, 9, generator=GENERATOR), 3, 1)
IMAGES = torch.einsum("ij,njhw->nihw", MIXING, NOISE) + 0.5  # neighbours go together
ROWS = torch.randn(128, 12, generator=GENERATOR) @ torch.randn(12, 12, generator=GENERATOR)
SIGNALS = IMAGES.flatten(2)


def config(
    rounding: WeightRounding = WeightRounding.GPTQ,
    activation: TensorQuantConfig | None = None,
    *,
    bias_correction: bool = False,
) -> QuantConfig:
    return QuantConfig(
        activation=activation,
        weight=TensorQuantConfig(Precision.INT4, per_channel=True),
        weight_rounding=rounding,
        bias_correction=bias_correction,
        smooth=None,
    )


class Transposed(nn.Module):
    """A linear layer the way GPT-2 spells it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 8))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(12, 8), ROWS),
    "transposed linear": (Transposed, ROWS),
    "conv": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), IMAGES),
    "dilated conv": (lambda: nn.Conv2d(6, 8, 3, padding="same", dilation=2), IMAGES),
    "uneven conv": (lambda: nn.Conv2d(6, 8, (2, 3), padding=(0, 2)), IMAGES),
    "grouped conv": (lambda: nn.Conv2d(6, 8, 3, groups=2), IMAGES),
    "depthwise conv": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), IMAGES),
    "conv of signals": (lambda: nn.Conv1d(6, 8, 5, padding="valid"), SIGNALS),
}
ANY_LAYER = pytest.mark.parametrize("name", LAYERS)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def error(found: nn.Module, reference: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((found(x) - reference(x)).square().sum())


@pytest.mark.parametrize("rounding", [WeightRounding.GPTQ, WeightRounding.ADAROUND])
@ANY_LAYER
def test_leaves_less_error_than_the_nearest_codes(name: str, rounding: WeightRounding) -> None:
    make, data = LAYERS[name]
    model = seeded(make)

    rounded, nearest = (
        quantize(model, (data,), config(kind), forward_loop=[data], backend=TENSORRT)
        for kind in (rounding, WeightRounding.NEAREST)
    )

    assert error(rounded, model, data) < 0.9 * error(nearest, model, data)


@ANY_LAYER
def test_columns_times_rows_are_the_layer(name: str) -> None:
    make, data = LAYERS[name]
    graph = insert_qdq(
        transform(seeded(make), (data,), backend=TENSORRT).model, config=config(), backend=TENSORRT
    )
    (layer,) = [part for part in graph.modules() if isinstance(part, WeightedFused)]
    data = data[:2]

    weight, _ = layer.folded_weight_and_bias()
    found = weight_rows(layer, weight) @ input_columns(layer, data)

    expected = layer.layer_output(data, weight, None)
    channels = expected.movedim(1, 0) if data.dim() > 2 else expected.t()
    torch.testing.assert_close(found.flatten(0, 1), channels.flatten(1))


class Block(nn.Module):
    """A norm to fold, activations to round, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 12, 3, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 12, 2)
        self.head = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


def block() -> Block:
    torch.manual_seed(0)
    model = Block()
    for _ in range(20):
        model(IMAGES)
    return model.eval()


def int4_block(
    rounding: WeightRounding = WeightRounding.GPTQ, *, bias_correction: bool = False
) -> GraphModule:
    asked = config(rounding, TensorQuantConfig(), bias_correction=bias_correction)
    return quantize(block(), (IMAGES,), asked, forward_loop=[IMAGES], backend=TENSORRT)


@pytest.mark.parametrize("rounding", [WeightRounding.GPTQ, WeightRounding.ADAROUND])
def test_what_is_rounded_is_what_converts(rounding: WeightRounding) -> None:
    rounded = int4_block(rounding, bias_correction=True)

    converted = convert(rounded)

    torch.testing.assert_close(converted(IMAGES), rounded(IMAGES), rtol=0, atol=1e-5)


def test_the_report_says_what_was_rounded_and_what_was_not() -> None:
    report = record_of(int4_block()).report

    assert isinstance(report, TransformationReport)
    (record,) = [one for one in report.passes if one.name == "weight rounding"]
    assert record.notes[0].startswith("2 weights rounded, ")
    assert "ConvTranspose2d are not laid out as columns" in record.notes[1]
    assert record.notes[1].startswith("%fused_conv_relu (")


def test_the_mean_of_each_output_stays_where_biases_are_corrected() -> None:
    model = seeded(lambda: nn.Linear(12, 8))

    rounded = quantize(
        model, (ROWS,), config(bias_correction=True), forward_loop=[ROWS], backend=TENSORRT
    )

    with torch.no_grad():
        torch.testing.assert_close(rounded(ROWS).mean(0), model(ROWS).mean(0))


def test_the_float_weights_and_the_model_stay_what_they_were() -> None:
    model = seeded(lambda: nn.Linear(12, 8))
    before = model.state_dict()["weight"].clone()

    rounded = quantize(model, (ROWS,), config(), forward_loop=[ROWS], backend=TENSORRT)

    assert torch.equal(model.state_dict()["weight"], before)
    assert torch.equal(rounded.state_dict()["weight"], before)


def test_one_batch_after_the_other_is_all_of_them() -> None:
    model = seeded(lambda: nn.Linear(12, 8))
    batches = [ROWS[start : start + 32] for start in range(0, 128, 32)]

    one, several, streamed = (
        quantize(model, (ROWS,), config(), forward_loop=loop, backend=TORCHAO)
        for loop in ([ROWS], batches, iter(batches))
    )

    assert torch.equal(one(ROWS), several(ROWS))
    assert torch.equal(one(ROWS), streamed(ROWS))


def test_rounds_a_graph_that_was_calibrated_before() -> None:
    model = seeded(lambda: nn.Linear(12, 8))
    graph = insert_qdq(transform(model, (ROWS,), backend=TENSORRT).model, config=config())
    calibrate(graph, [ROWS], bias_correction=False)

    round_weights(graph, [ROWS], corrects_biases=False)
    round_weights(graph, [ROWS], corrects_biases=False)  # anew, not on top of it

    expected = quantize(model, (ROWS,), config(), forward_loop=[ROWS], backend=TENSORRT)
    assert torch.equal(graph(ROWS), expected(ROWS))


def test_scales_may_be_frozen_as_well() -> None:
    model = seeded(lambda: nn.Linear(12, 8))

    loose, frozen = (
        quantize(model, (ROWS,), config(), [ROWS], freeze_weights=is_frozen, backend=TENSORRT)
        for is_frozen in (False, True)
    )

    assert torch.equal(loose(ROWS), frozen(ROWS))


@pytest.mark.parametrize("learned", [True, False])
def test_training_starts_from_the_nearest_codes(learned: bool) -> None:
    model = seeded(lambda: nn.Linear(12, 8))
    nearest, rounded = (
        quantize(model, (ROWS,), config(kind), forward_loop=[ROWS], backend=TENSORRT)
        for kind in (WeightRounding.NEAREST, WeightRounding.GPTQ)
    )

    training = prepare_qat(rounded, QatConfig(learned_steps=learned))

    assert not [part for part in training.model.modules() if isinstance(part, RoundedWeight)]
    torch.testing.assert_close(training.model(ROWS), nearest(ROWS))


def test_needs_data() -> None:
    model = seeded(lambda: nn.Linear(12, 8))

    with pytest.raises(CalibrationError, match="weight_rounding=GPTQ needs data"):
        quantize(model, (ROWS,), config(), backend=TENSORRT)
    with pytest.raises(CalibrationError, match="never ran the model"):
        quantize(model, (ROWS,), config(), forward_loop=[], backend=TENSORRT)


def test_the_nearest_codes_are_no_choice() -> None:
    with pytest.raises(ValueError, match="must be one of GPTQ, ADAROUND, got NEAREST"):
        round_weights(int4_block(), [IMAGES], rounding=WeightRounding.NEAREST)


def test_float8_weights_keep_their_nearest_codes() -> None:
    asked = QuantConfig(
        activation=None,
        weight=TensorQuantConfig(Precision.FP8_E4M3, per_channel=True),
        weight_rounding=WeightRounding.GPTQ,
    )

    rounded = quantize(
        seeded(lambda: nn.Linear(12, 8)), (ROWS,), asked, forward_loop=[ROWS], backend=TENSORRT
    )

    report = record_of(rounded).report
    assert isinstance(report, TransformationReport)
    (record,) = [one for one in report.passes if one.name == "weight rounding"]
    assert "float8" in record.notes[0]
    assert functional.mse_loss(rounded(ROWS), seeded(lambda: nn.Linear(12, 8))(ROWS)) < 0.05
