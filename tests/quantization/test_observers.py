import math

import pytest
import torch
from torch import Tensor

from embedl_deploy.errors import CalibrationError
from embedl_deploy.quantization import CalibrationMethod, QuantGrid, TensorQuantConfig
from embedl_deploy.quantization.observers import Observer, make_observer


def observer_of(method: CalibrationMethod) -> Observer:
    config = TensorQuantConfig(symmetric=False, calibration_method=method)
    return make_observer(config, QuantGrid.of(config))


def test_minmax_keeps_the_extremes_of_all_batches() -> None:
    observer = observer_of(CalibrationMethod.MINMAX)

    batches = ([1.0, math.e], [-math.pi, 0.0], [1.5])
    for batch in batches:
        observer.observe(torch.tensor(batch, dtype=torch.float64))

    assert tuple(map(float, observer.range())) == (-math.pi, math.e)


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_few_values_get_a_step_that_fits_where_nothing_is_to_be_clipped(
    method: CalibrationMethod,
) -> None:
    observer = observer_of(method)

    observer.observe(torch.arange(-8, 9) / 16)

    fits = (CalibrationMethod.MINMAX, CalibrationMethod.HISTOGRAM, CalibrationMethod.MSE)
    step = float(observer.range()[1] - observer.range()[0]) / 255
    assert ((1 / 16 / step) == pytest.approx(15)) == (method in fits)


def test_moving_average_leans_towards_the_first_batch() -> None:
    observer = observer_of(CalibrationMethod.MOVING_AVERAGE_MINMAX)

    observer.observe(torch.tensor([-1.0, 1.0]))
    observer.observe(torch.tensor([-11.0, 2.0]))

    low, high = map(float, observer.range())
    assert low == pytest.approx(-2.0)
    assert high == pytest.approx(1.1)


@pytest.mark.parametrize("method", list(CalibrationMethod))
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_refuses_values_that_are_not_finite(method: CalibrationMethod, poison: float) -> None:
    with pytest.raises(CalibrationError, match=r"1 NaN|1 infinite"):
        observer_of(method).observe(torch.tensor([1.0, poison]))


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_refuses_to_choose_from_nothing(method: CalibrationMethod) -> None:
    with pytest.raises(CalibrationError, match="no value was observed"):
        observer_of(method).range()


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_goes_on_from_a_saved_state(method: CalibrationMethod) -> None:
    batches = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    whole, first, second = observer_of(method), observer_of(method), observer_of(method)

    for batch in batches:
        whole.observe(batch)
    for batch in batches[:2]:
        first.observe(batch)
    second.load_state(first.state())
    for batch in batches[2:]:
        second.observe(batch)

    assert second.range() == whole.range()
    assert second.batches == 4


def test_an_empty_tensor_is_no_observation() -> None:
    observer = observer_of(CalibrationMethod.MINMAX)

    observer.observe(torch.empty(0))

    assert observer.batches == 0


@pytest.mark.parametrize(
    "values", [torch.randn(3, 4).bfloat16(), torch.randn(3, 4).half(), torch.randn(3, 4).double()]
)
def test_takes_every_floating_dtype(values: Tensor) -> None:
    observer = observer_of(CalibrationMethod.HISTOGRAM)

    observer.observe(values)

    assert float(observer.range()[1]) <= float(values.max())
