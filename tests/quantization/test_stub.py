import copy

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.errors import CalibrationError
from embedl_deploy.quantization import Precision, QuantStub, TensorQuantConfig
from embedl_deploy.quantization.quantize_dequantize import QuantizeDequantize
from embedl_deploy.quantization.stub import stubs_of

VALUES = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def calibrated(values: Tensor = VALUES, dtype: torch.dtype | None = None) -> QuantStub:
    stub = QuantStub(TensorQuantConfig(symmetric=False), dtype, site="%x")
    stub.start_observing()
    stub(values)
    stub.finish_observing()
    return stub


def test_passes_values_through_until_it_is_calibrated() -> None:
    stub = QuantStub(TensorQuantConfig())

    assert stub(VALUES) is VALUES
    assert "passing through" in repr(stub)


def test_passes_values_through_while_it_observes() -> None:
    stub = QuantStub(TensorQuantConfig())
    stub.start_observing()

    assert stub(VALUES) is VALUES
    assert "observing" in repr(stub)


@pytest.mark.parametrize("dtype", [None, torch.uint8])
def test_rounds_to_at_most_256_values_within_half_a_step(dtype: torch.dtype | None) -> None:
    stub = calibrated(dtype=dtype)

    rounded = stub(VALUES)

    assert (rounded - VALUES).abs().max() <= 0.51 * float(stub.scale)
    assert (rounded - VALUES).abs().max() > 0
    assert int((rounded.flatten().sort().values.diff() > 0).sum()) < 256
    assert "scale=" in repr(stub)


def test_the_gradient_passes_inside_the_range_and_stops_outside() -> None:
    values = torch.tensor([0.1, 100.0, -100.0], requires_grad=True)

    calibrated()(values).sum().backward()

    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0, 0.0]


def test_float8_passes_the_gradient_too() -> None:
    stub = QuantStub(TensorQuantConfig(Precision.FP8_E4M3))
    stub.quantizing = True
    values = torch.tensor([0.3, 1e4], requires_grad=True)

    rounded = stub(values)
    rounded.sum().backward()

    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 0.0]
    assert rounded.tolist() == [pytest.approx(0.3125), 448.0]


def test_keeps_the_dtype() -> None:
    assert calibrated()(VALUES.bfloat16()).dtype == torch.bfloat16


def test_a_copy_has_its_own_scale() -> None:
    stub = calibrated()

    twin = copy.deepcopy(stub)
    twin.scale.fill_(7.0)

    assert float(stub.scale) != 7.0


def test_exports_while_rounding() -> None:
    model = nn.Sequential(calibrated(), nn.Linear(16, 2))

    program = torch.export.export(model, (VALUES,), strict=False)

    torch.testing.assert_close(program.module()(VALUES), model(VALUES))


def test_names_the_tensor_and_the_batch_of_a_nan() -> None:
    stub = QuantStub(TensorQuantConfig(), site="%layer (model.py:7)")
    stub.start_observing()
    stub(VALUES)

    with pytest.raises(
        CalibrationError, match=r"%layer \(model.py:7\), calibration batch 1: 1 NaN"
    ):
        stub(torch.tensor([float("nan")]))


def test_names_the_tensor_that_was_never_seen() -> None:
    stub = QuantStub(TensorQuantConfig(), site="%dead")
    stub.start_observing()

    with pytest.raises(CalibrationError, match="%dead: no value was observed"):
        stub.finish_observing()


def test_scale_travels_in_the_state_dict() -> None:
    stub, other = calibrated(), QuantStub(TensorQuantConfig(symmetric=False))

    other.load_state_dict(stub.state_dict())

    assert torch.equal(other.scale, stub.scale)
    assert torch.equal(other.zero_point, stub.zero_point)


@pytest.mark.parametrize("dtype", [None, torch.uint8])
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.bfloat16])
def test_the_quantize_and_dequantize_ops_give_the_same_values(
    dtype: torch.dtype | None, value_dtype: torch.dtype
) -> None:
    stub, values = calibrated(dtype=dtype), VALUES.to(value_dtype)

    assert torch.equal(QuantizeDequantize.of(stub)(values), stub(values))


def test_a_stub_in_two_places_is_listed_once() -> None:
    stub = QuantStub(TensorQuantConfig())

    assert list(stubs_of(nn.Sequential(stub, stub))) == [("0", stub)]
