"""Scales that are taken from the tensor itself at each call."""

import dataclasses

import pytest
import torch
from torch import Tensor

from embedl_deploy.quantization import (
    CalibrationMethod,
    Dynamic,
    Precision,
    QuantConfig,
    QuantGrid,
    TensorQuantConfig,
    WeightFakeQuantize,
)
from embedl_deploy.quantization.dynamic import (
    DynamicQuantizeDequantize,
    DynamicStub,
    dynamic_scale,
    round_at_run_time,
)
from embedl_deploy.quantization.quantize_dequantize import decomposed
from embedl_deploy.quantization.scales import scale_and_zero_point
from embedl_deploy.quantization.smoothing import smoothed_errors

PER_TOKEN = TensorQuantConfig(dynamic=Dynamic.PER_TOKEN)
GENERATOR = torch.Generator().manual_seed(0)
X = (torch.randn(3, 5, 64, generator=GENERATOR) + 0.5) * torch.logspace(-3, 2, 5)[:, None]
EVERY = pytest.mark.parametrize("dynamic", list(Dynamic))
GRIDS = {
    f"{'symmetric' if symmetric else 'asymmetric'} {dtype}": QuantGrid.of(
        TensorQuantConfig(symmetric=symmetric), dtype
    )
    for symmetric in (True, False)
    for dtype in (torch.int8, torch.uint8)
}
ANY_GRID = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


def test_a_token_has_the_scale_that_torch_chooses_for_it() -> None:
    decomposed()
    ops = torch.ops.quantized_decomposed
    for symmetric, choose in (
        (True, ops.choose_qparams_per_token),
        (False, ops.choose_qparams_per_token_asymmetric),
    ):
        grid = QuantGrid.of(TensorQuantConfig(symmetric=symmetric))

        scale, zero_point = dynamic_scale(X, grid, Dynamic.PER_TOKEN)

        theirs, their_point = choose(X, torch.int8)
        torch.testing.assert_close(scale, theirs.float())
        assert int((zero_point - their_point).abs().max()) <= 1  # they round either end


@ANY_GRID
def test_a_tensor_has_the_scale_of_its_extremes(grid: QuantGrid) -> None:
    scale, zero_point = dynamic_scale(X, grid, Dynamic.PER_TENSOR)

    expected = scale_and_zero_point(X.amin(), X.amax(), grid)
    assert scale.shape == zero_point.shape == ()
    torch.testing.assert_close(scale, expected[0])
    assert torch.equal(zero_point, expected[1])


@EVERY
@ANY_GRID
def test_the_operations_give_what_the_stub_gives(grid: QuantGrid, dynamic: Dynamic) -> None:
    rounded = round_at_run_time(X, grid, dynamic)

    assert torch.equal(DynamicQuantizeDequantize(grid, dynamic)(X), rounded)
    scale, _ = dynamic_scale(X, grid, dynamic)
    assert bool(((rounded - X).abs() <= 0.5001 * scale).all())
    assert float((rounded - X).abs().max()) > 0.3 * float(scale.max())


def test_tokens_do_not_share_an_outlier() -> None:
    grid = QuantGrid.of(PER_TOKEN)
    changed = X.clone()
    changed[0, 0, 0] = 1e4

    before, after = (round_at_run_time(x, grid, Dynamic.PER_TOKEN) for x in (X, changed))

    assert torch.equal(before[1:], after[1:])
    assert torch.equal(before[0, 1:], after[0, 1:])
    assert not torch.equal(before[0, 0, 1:], after[0, 0, 1:])


@EVERY
@ANY_GRID
def test_zeros_stay_zero(grid: QuantGrid, dynamic: Dynamic) -> None:
    assert torch.equal(round_at_run_time(torch.zeros(2, 4), grid, dynamic), torch.zeros(2, 4))
    half = torch.zeros(2, 4)
    half[1] = torch.tensor([0.0, 1.0, 2.0, -3.0])
    rounded = round_at_run_time(half, grid, dynamic)
    assert torch.equal(rounded[0], half[0])
    assert float(rounded[1, 0]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY
def test_short_types_stay_what_they_are(dtype: torch.dtype, dynamic: Dynamic) -> None:
    grid = QuantGrid.of(PER_TOKEN)
    short = X.to(dtype)

    rounded = round_at_run_time(short, grid, dynamic)

    assert rounded.dtype is dtype
    assert torch.equal(rounded, DynamicQuantizeDequantize(grid, dynamic)(short))


@EVERY
def test_the_gradient_passes_through(dynamic: Dynamic) -> None:
    x = X.clone().requires_grad_()

    rounded = round_at_run_time(x, QuantGrid.of(PER_TOKEN), dynamic)
    (rounded * torch.arange(64.0)).sum().backward()

    assert isinstance(x.grad, Tensor)
    assert torch.equal(x.grad, torch.arange(64.0).expand_as(X))
    with torch.no_grad():
        exact = round_at_run_time(X, QuantGrid.of(PER_TOKEN), dynamic)
    torch.testing.assert_close(rounded.detach(), exact)


def test_smoothing_weighs_the_error_that_tokens_with_own_scales_leave() -> None:
    rows, weight = X.flatten(0, 1), torch.randn(16, 64, generator=GENERATOR)
    quantizer = WeightFakeQuantize(TensorQuantConfig(per_channel=True), weight.shape)
    small = rows.abs().amax(1) < 0.1
    grid, ones = QuantGrid.of(PER_TOKEN), [torch.ones(64)]

    errors = {
        kind: smoothed_errors(rows, [weight], ones, grid, [quantizer], kind)[0]
        for kind in (None, *Dynamic)
    }

    assert 0 < int(small.sum()) < len(rows)
    assert errors[Dynamic.PER_TENSOR] == pytest.approx(errors[None], rel=1e-3)
    assert errors[Dynamic.PER_TOKEN] < 0.5 * errors[Dynamic.PER_TENSOR]


def test_a_stub_needs_no_data_and_passes_values_while_others_look() -> None:
    stub = DynamicStub(PER_TOKEN)
    rounded = stub(X)

    stub.start_observing()
    passed = stub(X)
    stub.finish_observing()

    assert not torch.equal(rounded, X)
    assert torch.equal(passed, X)
    assert torch.equal(stub(X), rounded)
    assert repr(stub) == "DynamicStub(int8 symmetric per token at run time)"


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"precision": Precision.INT4}, "are for INT8, got INT4"),
        ({"precision": Precision.FP8_E4M3}, "are for INT8, got FP8_E4M3"),
        ({"calibration_method": CalibrationMethod.MSE}, "largest value, got MSE"),
    ],
)
def test_refuses_what_no_kernel_takes(change: dict[str, object], because: str) -> None:
    with pytest.raises(ValueError, match=because):
        dataclasses.replace(PER_TOKEN, **change)  # pyright: ignore[reportArgumentType]  # fields by name


def test_refuses_weights_that_change_at_run_time() -> None:
    with pytest.raises(ValueError, match="from call to call, got dynamic=PER_TOKEN"):
        QuantConfig(weight=PER_TOKEN)
