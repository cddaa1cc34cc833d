"""What calibration remembers of the values it saw, in fixed memory."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from embedl_deploy.errors import CalibrationError
from embedl_deploy.quantization.config import TensorQuantConfig
from embedl_deploy.quantization.few_values import FewValues
from embedl_deploy.quantization.grid import QuantGrid
from embedl_deploy.quantization.histogram import Histogram
from embedl_deploy.quantization.precision import CalibrationMethod
from embedl_deploy.quantization.range_search import (
    entropy_range,
    percentile_range,
    rounding_error_range,
    uniform_error_range,
)

MOVING_AVERAGE_WEIGHT = 0.1
"""Share of each new batch in the moving average."""


class Observer(ABC):
    """Watches one tensor over all batches and proposes the range to represent."""

    batches: int = 0

    def observe(self, values: Tensor) -> None:
        """Takes the values of one batch into account.

        Raises:
            CalibrationError: A value is NaN or infinite.
        """
        if values.numel() == 0:
            return
        values = values.detach()
        low, high = torch.aminmax(values)
        if not bool(torch.isfinite(high - low)):
            raise CalibrationError(_not_finite(values))
        self._update(values, low, high)
        self.batches += 1

    def range(self) -> tuple[Tensor, Tensor]:
        """Returns the lowest and highest value to represent, float64 scalars on the CPU.

        Raises:
            CalibrationError: Nothing was observed.
        """
        if self.batches == 0:
            raise CalibrationError("no value was observed: calibration never reached this tensor")
        return self._range()

    @abstractmethod
    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None: ...

    @abstractmethod
    def _range(self) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Returns all that was seen, as tensors that ``load_state`` takes."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from what another observer of the same kind saw."""

    @property
    @abstractmethod
    def is_constant(self) -> bool:
        """Whether all values seen were the same, as far as this observer can tell them apart."""

    @abstractmethod
    def merge(self, state: dict[str, Tensor]) -> None:
        """Adds what another observer saw, as if this one had seen it; exact, in either order.

        Raises:
            CalibrationError: What is kept depends on the order of the batches.
        """


class MinMaxObserver(Observer):
    """Keeps the smallest and the largest value; with ``average``, averaged over batches."""

    def __init__(self, average: bool = False) -> None:
        self.average = average
        self.extremes = torch.zeros(2, dtype=torch.float64)

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        del values
        seen = torch.stack([low, high]).double().cpu()
        if self.batches == 0:
            self.extremes = seen
        elif self.average:
            self.extremes = torch.lerp(self.extremes, seen, MOVING_AVERAGE_WEIGHT)
        else:
            self.extremes[0] = torch.minimum(self.extremes[0], seen[0])
            self.extremes[1] = torch.maximum(self.extremes[1], seen[1])

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.extremes[0], self.extremes[1]

    def state(self) -> dict[str, Tensor]:
        return {"extremes": self.extremes, "batches": torch.tensor(self.batches)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.extremes = state["extremes"].clone()
        self.batches = int(state["batches"])

    def merge(self, state: dict[str, Tensor]) -> None:
        if self.average:
            raise CalibrationError("a moving average depends on the order of the batches")
        if int(state["batches"]):
            self._update(state["extremes"], *state["extremes"])
            self.batches += int(state["batches"])

    @property
    def is_constant(self) -> bool:
        return self.batches > 0 and bool(self.extremes[0] == self.extremes[1])


class HistogramObserver(Observer):
    """Counts values in a grid that grows with them, and searches the counts for a range."""

    def __init__(self, config: TensorQuantConfig, grid: QuantGrid) -> None:
        self.config = config
        self.grid = grid
        self.histogram = Histogram()

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        self.histogram.add(values, float(low), float(high))

    def _range(self) -> tuple[Tensor, Tensor]:
        low, high = self._search()
        return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)

    def _search(self) -> tuple[float, float]:
        method = self.config.calibration_method
        if method is CalibrationMethod.PERCENTILE:
            return percentile_range(self.histogram, self.config.percentile)
        if method is CalibrationMethod.ENTROPY:
            return entropy_range(self.histogram, self.grid)
        if method is CalibrationMethod.MSE:
            return rounding_error_range(self.histogram, self.grid)
        return uniform_error_range(self.histogram, self.grid)

    def state(self) -> dict[str, Tensor]:
        return {**self.histogram.state(), "batches": torch.tensor(self.batches)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.histogram.load_state(state)
        self.batches = int(state["batches"])

    def merge(self, state: dict[str, Tensor]) -> None:
        other = Histogram()
        other.load_state(state)
        self.histogram.merge(other)
        self.batches += int(state["batches"])

    @property
    def is_constant(self) -> bool:
        return int(torch.count_nonzero(self.histogram.counts)) == 1


class FittingObserver(Observer):
    """Proposes another observer's range, unless a grid fits the few values there are better."""

    def __init__(self, inner: Observer, grid: QuantGrid) -> None:
        self.inner = inner
        self.grid = grid
        self.few = FewValues()

    def _update(self, values: Tensor, low: Tensor, high: Tensor) -> None:
        self.inner._update(values, low, high)
        self.inner.batches += 1
        self.few.add(values)

    def _range(self) -> tuple[Tensor, Tensor]:
        low, high = self.inner.range()
        low, high = torch.tensor(
            self.few.range(self.grid, (float(low), float(high))), dtype=torch.float64
        )
        return low, high

    def state(self) -> dict[str, Tensor]:
        return {**self.inner.state(), **self.few.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.inner.load_state(state)
        self.few.load_state(state)
        self.batches = self.inner.batches

    def merge(self, state: dict[str, Tensor]) -> None:
        self.inner.merge(state)
        self.few.merge(state)
        self.batches = self.inner.batches

    @property
    def is_constant(self) -> bool:
        return self.inner.is_constant


def make_observer(config: TensorQuantConfig, grid: QuantGrid) -> Observer:
    """Returns a new observer that computes what ``config.calibration_method`` needs."""
    method = config.calibration_method
    if method is CalibrationMethod.MOVING_AVERAGE_MINMAX:
        return MinMaxObserver(average=True)
    if method is CalibrationMethod.MINMAX:
        return FittingObserver(MinMaxObserver(), grid)
    observer = HistogramObserver(config, grid)
    is_least_error = method in (CalibrationMethod.HISTOGRAM, CalibrationMethod.MSE)
    return FittingObserver(observer, grid) if is_least_error else observer


def _not_finite(values: Tensor) -> str:
    nans = int(torch.isnan(values).sum())
    infinities = int(torch.isinf(values).sum())
    if nans == infinities == 0:
        return "the spread of the values overflows their dtype"
    return f"{nans} NaN and {infinities} infinite of {values.numel()} values"
