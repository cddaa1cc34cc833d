from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.errors import CalibrationError
from embedl_deploy.passes.calibration import calibrate_model
from embedl_deploy.quantization import QuantStub, TensorQuantConfig

BATCHES = list(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)))


class Net(nn.Module):
    """Two inputs, a stub, a linear layer and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stub = QuantStub(TensorQuantConfig(symmetric=False), site="%x")
        self.linear = nn.Linear(8, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.dropout(self.linear(self.stub(x)))
        return y if shift is None else y + shift


def net() -> Net:
    return Net().eval()


def extremes_of(batches: list[Tensor]) -> float:
    seen = torch.stack(batches)
    return float((seen.max() - seen.min()) / 255)


def test_a_callable_runs_the_model_itself() -> None:
    model = net()

    calibrate_model(model, lambda given: [given(batch) for batch in BATCHES])

    assert float(model.stub.scale) == pytest.approx(extremes_of(BATCHES))
    assert model.stub.quantizing


@pytest.mark.parametrize(
    "inputs",
    [
        BATCHES,
        [(batch,) for batch in BATCHES],
        [[batch, torch.zeros(2)] for batch in BATCHES],
        [{"x": batch} for batch in BATCHES],
    ],
)
def test_an_iterable_yields_tensors_tuples_or_dicts(inputs: list[object]) -> None:
    model = net()

    record, _ = calibrate_model(model, inputs)

    assert float(model.stub.scale) == pytest.approx(extremes_of(BATCHES))
    assert record.notes[0] == "1 activations calibrated on 3 forward passes"


def test_takes_a_data_loader() -> None:
    model, data = net(), torch.utils.data.TensorDataset(torch.cat(BATCHES))

    calibrate_model(model, torch.utils.data.DataLoader(data, batch_size=5))

    assert float(model.stub.scale) == pytest.approx(extremes_of(BATCHES))


def test_refuses_a_loop_that_never_runs_the_model() -> None:
    model = net()

    with pytest.raises(CalibrationError, match="never ran the model"):
        calibrate_model(model, lambda _: None)

    assert not model.stub.quantizing


def test_refuses_an_empty_data_set() -> None:
    with pytest.raises(CalibrationError, match="never ran the model"):
        calibrate_model(net(), [])


def test_refuses_no_loop_at_all() -> None:
    with pytest.raises(CalibrationError, match="1 activations need data"):
        calibrate_model(net(), None)


def test_a_model_without_stubs_needs_no_data() -> None:
    (record,) = calibrate_model(nn.Linear(2, 2), None)

    assert "no activation needs any" in record.notes[0]


def test_names_layer_and_batch_of_a_nan() -> None:
    poisoned = BATCHES[1].clone()
    poisoned[0, 0] = torch.nan

    with pytest.raises(CalibrationError, match="%x, calibration batch 1: 1 NaN"):
        calibrate_model(net(), [BATCHES[0], poisoned])


def test_names_the_batch_that_the_model_does_not_run_on() -> None:
    with pytest.raises(
        CalibrationError, match=r"batch 1 .*float32\[2, 3\].*RuntimeError"
    ) as caught:
        calibrate_model(net(), [BATCHES[0], torch.zeros(2, 3)])

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_goes_on_after_an_interruption() -> None:
    def interrupted() -> Iterator[Tensor]:
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    model = net()
    with pytest.raises(KeyboardInterrupt):
        calibrate_model(model, interrupted())
    assert torch.equal(model.stub(BATCHES[0]), BATCHES[0])

    calibrate_model(model, BATCHES[2:])

    assert float(model.stub.scale) == pytest.approx(extremes_of(BATCHES))


def test_a_second_calibration_starts_anew() -> None:
    model = net()
    calibrate_model(model, [100.0 * batch for batch in BATCHES])

    calibrate_model(model, BATCHES)

    assert float(model.stub.scale) == pytest.approx(extremes_of(BATCHES))


def test_observes_in_eval_mode_and_gives_back_the_mode() -> None:
    model = net().train()
    model.linear.eval()
    modes = [module.training for module in model.modules()]
    seen: list[bool] = []

    def run(given: nn.Module) -> None:
        seen.extend(module.training for module in given.modules())
        given(BATCHES[0])

    calibrate_model(model, run)

    assert not any(seen)
    assert [module.training for module in model.modules()] == modes


def test_reports_progress_after_each_pass() -> None:
    seen: list[int] = []

    calibrate_model(net(), BATCHES, progress=seen.append)

    assert seen == [1, 2, 3]
