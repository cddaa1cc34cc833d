"""A linear layer on integer codes: one integer product, with the graph's own scales."""

# pyright: reportPrivateUsage=false
# torch keeps its integer product private; there is no other door.

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

_multiply = cast("Callable[[Tensor, Tensor], Tensor]", torch.ops.aten._int_mm.default)
_FEWEST_ROWS = 17
"""cuBLAS multiplies integers of more than 16 rows only; torch refuses fewer."""

_SHIFT = 128


@dataclass(frozen=True)
class WeightCodes:
    """A linear layer whose weight is codes, and what it reads and gives."""

    codes: Tensor
    """Of the weight, shape (out, in), int8."""

    scales: Tensor
    """Per output channel, shape (out,)."""

    bias: Tensor | None
    """Shape (out,)."""

    is_unsigned: bool
    """Whether the activation's codes are uint8."""

    dtype: torch.dtype
    """Of the result."""


class _CodesLinear(nn.Module):
    """What both kinds share. Unsigned codes are read as signed ones, moved down by 128."""

    codes: Tensor
    sums: Tensor
    bias: Tensor | None

    def __init__(self, weight: WeightCodes) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("sums", weight.codes.sum(1, dtype=torch.int32))
        self.register_buffer("bias", None if weight.bias is None else weight.bias.detach())
        self.shift = _SHIFT if weight.is_unsigned else 0
        self.dtype = weight.dtype

    def product(self, x: Tensor) -> Tensor:
        """Returns the sums of all products of codes, shape (rows, out), int32."""
        signed = x.bitwise_xor(_SHIFT).view(torch.int8) if self.shift else x
        rows = signed.reshape(-1, signed.shape[-1])
        count = rows.shape[0]
        if not rows.is_cuda or count >= _FEWEST_ROWS:
            return _multiply(rows, self.codes.t())
        padded = torch.constant_pad_nd(rows, (0, 0, 0, _FEWEST_ROWS - count))
        return _multiply(padded, self.codes.t())[:count]

    def finish(self, values: Tensor, x: Tensor) -> Tensor:
        """Adds the bias and gives the rows the shape of what was read."""
        if self.bias is not None:
            values = values + self.bias
        return values.to(self.dtype).reshape(*x.shape[:-1], -1)


class IntegerLinear(_CodesLinear):
    """Multiplies activation codes by weight codes in int8, and scales the int32 sums.

        y = (qₓ - z) Wqᵀ · sₓ · s_w + b = (qₓ Wqᵀ - z Σ Wq) · (sₓ s_w) + b

    The sums are exact; against the same product of dequantized values the result moves by the
    rounding of float32 only.

    Args:
        weight: The layer.
        scale: Of the activation.
        zero_point: Of the activation.
    """

    factors: Tensor

    def __init__(self, weight: WeightCodes, scale: float, zero_point: int) -> None:
        super().__init__(weight)
        self.sums.mul_(zero_point - self.shift)
        self.register_buffer("factors", weight.scales.float() * scale)

    def forward(self, x: Tensor) -> Tensor:
        """Takes the activation's codes, shape (..., in), int8 or uint8."""
        return self.finish((self.product(x) - self.sums).float() * self.factors, x)


class DynamicIntegerLinear(_CodesLinear):
    """The same with a scale and a zero point that come with the codes."""

    scales: Tensor

    def __init__(self, weight: WeightCodes) -> None:
        super().__init__(weight)
        self.register_buffer("scales", weight.scales.float())

    def forward(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Takes codes, shape (..., in), and scalars, or numbers of shape (..., 1)."""
        moved = (zero_point - self.shift).reshape(-1, 1) * self.sums
        factors = scale.reshape(-1, 1) * self.scales
        return self.finish((self.product(x) - moved).float() * factors, x)
