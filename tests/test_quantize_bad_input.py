"""What quantize says of data, weights and configurations that no scale can come from."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.errors import CalibrationError, QuantizationError
from embedl_deploy.quantize import (
    CalibrationMethod,
    ModulesToSkip,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    check_qdq,
    convert,
    quantize,
)
from embedl_deploy.rewriting.records import report_of

ROWS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
METHODS = list(CalibrationMethod)


class Net(nn.Module):
    """Two linear layers with a logarithm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.norm(self.first(x)) + 9).log())


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def quantized(
    model: nn.Module, data: object, config: QuantConfig | None = None, example: Tensor = ROWS
) -> GraphModule:
    config = config or QuantConfig(smooth=None)
    return quantize(model, (example,), config, data, backend="inductor")  # pyright: ignore[reportArgumentType]  # bad on purpose


def notes_of(model: GraphModule) -> list[str]:
    return [note for record in report_of(model).passes for note in record.notes]


def spoiled(value: float) -> Tensor:
    rows = ROWS.clone()
    rows[3, 5] = value
    return rows


def scales(model: GraphModule) -> list[Tensor]:
    literals = [
        torch.tensor(node.args[1])
        for node in convert(model).graph.nodes
        if "quantize_per_tensor" in node.name
    ]
    stored = [
        tensor for name, tensor in convert(model).named_buffers() if name.endswith("weight_scale")
    ]
    return [*literals, *stored]


def _idle(model: nn.Module) -> nn.Module:
    return model


@pytest.mark.parametrize("kind", ["list", "iterator", "loop"])
def test_data_that_never_runs_the_model_is_an_error_with_the_count_of_activations(
    kind: str,
) -> None:
    data: dict[str, object] = {"list": [], "iterator": iter([]), "loop": _idle}

    with pytest.raises(CalibrationError, match=r"never ran the model .* 2 activations saw no data"):
        quantized(net(), data[kind])


def test_little_data_is_a_note_with_the_count() -> None:
    assert "only 4 samples in 1 forward passes" in str(notes_of(quantized(net(), [ROWS[:4]])))
    assert "only 40" not in str(notes_of(quantized(net(), [ROWS])))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.value)
@pytest.mark.parametrize(
    ("value", "counts"),
    [(float("nan"), "1 NaN and 0 infinite"), (float("-inf"), "0 NaN and 1 infinite")],
)
def test_a_value_that_is_not_finite_names_tensor_batch_and_count(
    method: CalibrationMethod, value: float, counts: str
) -> None:
    activation = TensorQuantConfig(calibration_method=method)
    config = QuantConfig(activation=activation, smooth=None)

    with pytest.raises(CalibrationError, match=rf"%x, calibration batch 1: {counts} of 320"):
        quantized(net(), [ROWS, spoiled(value), ROWS], config)


def test_a_nan_made_inside_names_the_layer_and_its_line() -> None:
    model = net()
    with torch.no_grad():
        model.norm.bias.sub_(20)

    with pytest.raises(
        CalibrationError, match=r"%log \(.*test_quantize_bad_input.py:\d+\), .*batch 0"
    ):
        quantized(model, [ROWS])


@pytest.mark.parametrize(
    ("field", "name"), [("first", "weight"), ("last", "weight"), ("last", "bias")]
)
def test_a_weight_that_is_not_finite_names_the_layer(field: str, name: str) -> None:
    model = net()
    with torch.no_grad():
        model.get_submodule(field).get_parameter(name).view(-1)[3] = torch.inf

    with pytest.raises(
        QuantizationError, match=rf"{name} of Linear at %{field} .* 0 NaN and 1 infinite of"
    ):
        quantized(model, None, QuantConfig(activation=None))


def test_a_layer_left_alone_may_hold_what_it_likes() -> None:
    model = net()
    with torch.no_grad():
        model.last.weight[0, 0] = torch.inf
    skip = ModulesToSkip(stub={"last"}, weight={"last"})

    assert check_qdq(quantized(model, [ROWS], QuantConfig(skip=skip, smooth=None))) == ()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.value)
def test_constant_and_empty_activations_get_usable_scales_and_a_note(
    method: CalibrationMethod,
) -> None:
    model = net()
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(-8.0)  # log(1) = 0 everywhere
    activation = TensorQuantConfig(calibration_method=method)

    result = quantized(model, [torch.zeros(40, 8)], QuantConfig(activation=activation, smooth=None))

    assert "2 activations had one value in all of the data, the first %x" in str(notes_of(result))
    assert all(bool((scale.isfinite() & (scale > 0)).all()) for scale in scales(result))
    assert check_qdq(result) == check_qdq(convert(result)) == ()
    torch.testing.assert_close(result(torch.zeros(2, 8)), model(torch.zeros(2, 8)))


def test_an_empty_output_channel_keeps_a_usable_scale_and_is_named() -> None:
    model = net()
    with torch.no_grad():
        model.first.weight[3].zero_()

    result = quantized(model, [ROWS])

    assert "1 of 16 output channels are zero throughout" in str(notes_of(result))
    assert all(bool((scale.isfinite() & (scale > 0)).all()) for scale in scales(result))
    assert check_qdq(result) == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_a_dtype_the_target_lacks_stays_as_it_is_with_the_reason(dtype: torch.dtype) -> None:
    model = nn.Linear(8, 4, dtype=dtype).eval()
    rows = ROWS.to(dtype)

    result = quantized(model, [rows], example=rows)

    (refusal,) = report_of(result).refusals()
    assert f"%input_1 is {dtype}, a dtype the target lacks" in str(refusal.reason)
    assert torch.equal(result(rows), model(rows))
    assert check_qdq(result) == ()


def _int4() -> QuantConfig:
    return QuantConfig(activation=TensorQuantConfig(Precision.INT4))


def _fp8() -> QuantConfig:
    return QuantConfig(weight=TensorQuantConfig(Precision.FP8_E4M3))


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (_int4, r"activation precision INT4 \(known: INT8\)"),
        (_fp8, r"weight precision FP8_E4M3 \(known: INT8, INT4\)"),
    ],
)
def test_a_precision_the_target_lacks_is_an_error_that_lists_what_it_has(
    config: Callable[[], QuantConfig], asked: str
) -> None:
    with pytest.raises(QuantizationError, match=asked):
        quantized(net(), [ROWS], config())


def test_a_skip_rule_that_matches_nothing_is_in_the_report() -> None:
    skip = ModulesToSkip(stub={"no.such.*"}, weight={nn.Conv2d}, smooth={"nor_this"})

    notes = notes_of(quantized(net(), [ROWS], QuantConfig(skip=skip)))

    for field, rule in (("stub", "no.such.*"), ("weight", "Conv2d"), ("smooth", "nor_this")):
        assert [note for note in notes if note.startswith(f"skip.{field} ") and rule in note]


@pytest.mark.parametrize("data", [[3], "abc", [None], [torch.randn(2, 9)]])
def test_data_the_model_does_not_run_on_is_shown_beside_what_it_takes(data: object) -> None:
    with pytest.raises(CalibrationError, match=r"does not run on batch 0 .*float32.*40, 8"):
        quantized(net(), data)
