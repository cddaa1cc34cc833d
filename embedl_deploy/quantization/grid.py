"""The codes a quantized tensor may take."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from embedl_deploy.quantization.config import TensorQuantConfig


@dataclass(frozen=True)
class QuantGrid:
    """The integers (or float8 values) from ``quant_min`` to ``quant_max``, stored in ``dtype``."""

    quant_min: int | float
    quant_max: int | float
    dtype: torch.dtype
    symmetric: bool

    @classmethod
    @lru_cache(maxsize=256)  # every stub asks for one, and there are few kinds
    def of(cls, config: TensorQuantConfig, dtype: torch.dtype | None = None) -> "QuantGrid":
        """Returns the grid that ``config`` asks for.

        Args:
            config: Precision and symmetry.
            dtype: The storage a target insists on. ``torch.uint8`` shifts int8 codes by 128,
                which changes the codes and none of the values they stand for. Formats that do
                not fit into it keep their own.
        """
        low, high = config.quant_min, config.quant_max
        fits = config.precision.format.bits <= 8 and not config.precision.is_float
        if dtype is torch.uint8 and fits:
            return cls(0, int(high - low), torch.uint8, config.symmetric)
        return cls(low, high, config.precision.format.dtype, config.symmetric)

    @property
    def is_float(self) -> bool:
        """Tells whether the codes are float8 values."""
        return self.dtype.is_floating_point

    @property
    def is_unsigned(self) -> bool:
        """Tells whether the lowest code is zero."""
        return self.dtype is torch.uint8

    @property
    def middle(self) -> int:
        """Returns the code that stands for zero in a symmetric range."""
        if self.is_float:
            return 0
        return int(self.quant_max + self.quant_min + 1) // 2

    @property
    def positive_codes(self) -> float:
        """Returns the code of the largest magnitude, counted from the middle."""
        return self.quant_max - self.middle

    @property
    def levels(self) -> int:
        """Returns how many codes there are."""
        return 256 if self.is_float else int(self.quant_max - self.quant_min) + 1

    def codes(self) -> Tensor:
        """Returns every code in rising order, float64, shape (levels,) or less for float8."""
        if not self.is_float:
            return torch.arange(self.quant_min, self.quant_max + 1, dtype=torch.float64)
        stored = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(self.dtype).double()
        finite = stored[torch.isfinite(stored)].sort().values
        return finite[finite.diff(prepend=finite[:1] - 1.0) > 0]
