from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.fx import GraphModule
from torch.multiprocessing.spawn import spawn  # pyright: ignore[reportUnknownVariableType]  # torch leaves it unannotated

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.errors import CalibrationError
from embedl_deploy.passes.calibration_state import State, merge_states
from embedl_deploy.quantization import CalibrationMethod, QuantStub, TensorQuantConfig
from embedl_deploy.quantize import (
    QuantConfig,
    SmoothQuantConfig,
    WeightRounding,
    calibrate,
    calibration_state,
    insert_qdq,
    load_calibration_state,
    quantize,
)
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.transformation import transform

BATCHES = list(torch.randn(6, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).exp())
MERGEABLE = [
    method for method in CalibrationMethod if method is not CalibrationMethod.MOVING_AVERAGE_MINMAX
]


def configured(method: CalibrationMethod) -> QuantConfig:
    return QuantConfig(TensorQuantConfig(symmetric=False, calibration_method=method), smooth=None)


def inserted(method: CalibrationMethod = CalibrationMethod.MINMAX) -> GraphModule:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 5))
    model = nn.Sequential(*layers).eval()
    fused = transform(model, (BATCHES[0],), backend=INDUCTOR).model
    return insert_qdq(fused, config=configured(method))


def numbers(model: nn.Module) -> list[Tensor]:
    """Returns the scale and zero point of each quantizer, and the corrections of biases."""
    stubs = [module for module in model.modules() if isinstance(module, QuantStub)]
    corrections = [value for key, value in model.named_buffers() if "bias_correction" in key]
    return [*(stub.scale for stub in stubs), *(stub.zero_point for stub in stubs), *corrections]


def interrupted(batches: list[Tensor]) -> Iterator[Tensor]:
    yield from batches
    raise KeyboardInterrupt


def state_after(model: GraphModule, batches: list[Tensor]) -> State:
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, interrupted(batches))
    return calibration_state(model)


@pytest.mark.parametrize("method", CalibrationMethod)
def test_goes_on_from_a_saved_state_bit_for_bit(method: CalibrationMethod, tmp_path: Path) -> None:
    whole, resumed = calibrate(inserted(method), BATCHES), inserted(method)

    torch.save(state_after(inserted(method), BATCHES[:4]), tmp_path / "state.pt")
    load_calibration_state(resumed, torch.load(tmp_path / "state.pt"))
    calibrate(resumed, BATCHES[4:])

    assert len(numbers(whole)) == 6
    for found, expected in zip(numbers(resumed), numbers(whole), strict=True):
        assert torch.equal(found, expected)


def test_a_complete_calibration_leaves_no_state() -> None:
    model = inserted()

    assert calibration_state(model) == {}
    assert calibration_state(calibrate(model, BATCHES)) == {}


def test_a_state_of_another_model_is_refused() -> None:
    state = state_after(inserted(), BATCHES[:1])
    lacking = {key: value for key, value in state.items() if not key.startswith("quant_stub.")}

    with pytest.raises(CalibrationError, match="lacks 1 of 2 quantizers"):
        load_calibration_state(inserted(), lacking)
    with pytest.raises(CalibrationError, match=r"holds 'other\.batches'"):
        load_calibration_state(inserted(), {**state, "other.batches": torch.tensor(1)})


@pytest.mark.parametrize("method", MERGEABLE)
def test_merged_states_are_those_of_one_process(method: CalibrationMethod) -> None:
    whole = state_after(inserted(method), BATCHES)
    shares = [BATCHES[1::2], [], BATCHES[0::2]]
    states = [state_after(inserted(method), share) for share in shares]
    merged = inserted(method)

    merge_states(merged, states)

    found = calibration_state(merged)
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        if "input_mean.total" in key:
            torch.testing.assert_close(found[key], value)
        else:
            assert torch.equal(found[key], value), key


def test_a_moving_average_cannot_be_merged() -> None:
    model = inserted(CalibrationMethod.MOVING_AVERAGE_MINMAX)
    state = state_after(model, BATCHES[:1])

    with pytest.raises(CalibrationError, match="depends on the order of the batches"):
        merge_states(model, [state, state])


def _join(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )


def _calibrate_share(rank: int, folder: str) -> None:
    _join(rank, folder)
    for method in MERGEABLE:
        model = calibrate(inserted(method), BATCHES[rank::2])
        torch.save(numbers(model), f"{folder}/{method.name}_{rank}.pt")
    with pytest.raises(CalibrationError, match="depends on the order of the batches"):
        calibrate(inserted(CalibrationMethod.MOVING_AVERAGE_MINMAX), BATCHES)
    data = BATCHES if rank else [BATCHES[0] * float("nan")]
    with pytest.raises(CalibrationError, match="in process 0 of 2" if rank else "NaN"):
        calibrate(inserted(), data)
    smooth = replace(configured(CalibrationMethod.MINMAX), smooth=SmoothQuantConfig(search=False))
    quantized = quantize(_normed(), (ROWS[0],), smooth, ROWS[rank::2], backend=INDUCTOR)
    torch.save(numbers(quantized), f"{folder}/smooth_{rank}.pt")
    quantized = quantize(_normed(), (ROWS[0],), GPTQ, ROWS[rank::2], backend=INDUCTOR)
    torch.save(quantized.state_dict(), f"{folder}/rounded_{rank}.pt")
    distributed.destroy_process_group()


GPTQ = QuantConfig(weight_rounding=WeightRounding.GPTQ, smooth=None)
ROWS = list(torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)).exp())


def _normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)).eval()


@pytest.mark.slow
def test_two_processes_get_the_scales_of_one(tmp_path: Path) -> None:
    spawn(_calibrate_share, (str(tmp_path),), nprocs=2)

    for method in MERGEABLE:
        expected = numbers(calibrate(inserted(method), BATCHES))
        first, second = (torch.load(tmp_path / f"{method.name}_{rank}.pt") for rank in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        # Scales and zero points to the bit; sums of floats depend on how they are grouped.
        assert all(torch.equal(a, b) for a, b in zip(first[:4], expected[:4], strict=True))
        torch.testing.assert_close(first[4:], expected[4:])
    smooth = replace(configured(CalibrationMethod.MINMAX), smooth=SmoothQuantConfig(search=False))
    whole = numbers(quantize(_normed(), (ROWS[0],), smooth, ROWS, backend=INDUCTOR))
    first, second = (torch.load(tmp_path / f"smooth_{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[:2], whole[:2], strict=True))
    rounded = quantize(_normed(), (ROWS[0],), GPTQ, ROWS, backend=INDUCTOR).state_dict()
    first, second = (torch.load(tmp_path / f"rounded_{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys() == rounded.keys()
    assert any("bias_correction" in name for name in rounded)
    for name, value in rounded.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value)


def notes_of(model: nn.Module, data: list[Tensor]) -> str:
    quantized = quantize(model.eval(), (data[0],), forward_loop=data, backend=INDUCTOR)
    return "\n".join(report_of(quantized).passes[-3].notes)


def test_the_report_names_too_little_data_with_the_count() -> None:
    model, rows = nn.Sequential(nn.Linear(8, 4)), torch.randn(31, 8)

    assert "only 31 samples in 1 forward passes" in notes_of(model, [rows])
    assert "only" not in notes_of(model, [rows, rows[:1]])


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_the_report_names_a_constant_activation(value: float) -> None:
    model = nn.Sequential(nn.Linear(8, 4))

    notes = notes_of(model, [torch.full((40, 8), value)])

    assert "1 activations had one value in all of the data, the first %input" in notes
    assert "had one value" not in notes_of(model, [torch.randn(40, 8)])


def test_the_report_names_empty_channels_of_a_weight() -> None:
    linear = nn.Linear(8, 4)
    model = nn.Sequential(linear)
    assert "output channels are zero" not in notes_of(model, [torch.randn(40, 8)])
    linear.weight.data[1:3].zero_()

    assert "2 of 4 output channels are zero throughout" in notes_of(model, [torch.randn(40, 8)])
