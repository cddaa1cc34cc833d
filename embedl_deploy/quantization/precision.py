"""The number formats tensors can be rounded to, and the ways to choose their range."""

from dataclasses import dataclass
from enum import Enum

import torch


@dataclass(frozen=True)
class NumberFormat:
    """What one precision can represent."""

    bits: int
    lowest: float
    highest: float
    dtype: torch.dtype
    """The torch dtype that stores it. int4 is stored in int8, one value a byte."""


class Precision(Enum):
    """A number format for quantized tensors."""

    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"

    @property
    def format(self) -> NumberFormat:
        """Returns the range, width and storage of this precision."""
        return _FORMATS[self]

    @property
    def is_float(self) -> bool:
        """Tells whether the steps between neighbouring values grow with the value."""
        return self.format.dtype.is_floating_point


class CalibrationMethod(Enum):
    """How a range is chosen from the values that calibration saw."""

    MINMAX = "minmax"
    """The smallest and the largest value seen. Nothing is clipped; one outlier sets the step.

    Here and in the two searches for the least squared error, a tensor of few different values
    that are multiples of one number (pixels, counts, masks) gets a step that fits them.
    """

    MOVING_AVERAGE_MINMAX = "moving_average_minmax"
    """An exponential average of each batch's extremes. Depends on the order of the batches."""

    HISTOGRAM = "histogram"
    """The range with the least squared error if values were uniform inside each step."""

    PERCENTILE = "percentile"
    """Cuts a fixed share of the values off each tail."""

    ENTROPY = "entropy"
    """The range that moves the distribution least, as Kullback and Leibler measure it."""

    MSE = "mse"
    """The range with the least squared error, rounding every bin of the histogram for real."""


class Dynamic(Enum):
    """Which values of an activation share a scale that is taken from them at each call."""

    PER_TOKEN = "per_token"
    """Those along the last axis: what a linear layer multiplies with one row of outputs."""

    PER_TENSOR = "per_tensor"
    """All of them."""


class WeightRounding(Enum):
    """How the codes of a weight are chosen, once its scale is."""

    NEAREST = "nearest"
    """Each value goes to the code next to it."""

    GPTQ = "gptq"
    """Codes are chosen together, so that their errors make up for one another on the calibration
    data. Costs another pass over it for every GiB that the layers' inputs squared take, and one
    more where biases are corrected."""

    ADAROUND = "adaround"
    """Each value goes to one of the two codes next to it, which one is learned on the calibration
    data. Costs what GPTQ does, and 600 products of the weight with its inputs squared."""


_FORMATS = {
    Precision.INT4: NumberFormat(4, -8, 7, torch.int8),
    Precision.INT8: NumberFormat(8, -128, 127, torch.int8),
    Precision.INT16: NumberFormat(16, -32768, 32767, torch.int16),
    Precision.FP8_E4M3: NumberFormat(8, -448.0, 448.0, torch.float8_e4m3fn),
    Precision.FP8_E5M2: NumberFormat(8, -57344.0, 57344.0, torch.float8_e5m2),
}
