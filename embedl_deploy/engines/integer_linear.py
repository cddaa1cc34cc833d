"""A linear layer on integer codes: one integer product, with the graph's own scales."""

# pyright: reportPrivateUsage=false
# torch keeps its integer product private; there is no other door.

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

_multiply = cast("Callable[[Tensor, Tensor], Tensor]", torch.ops.aten._int_mm.default)
_FEWEST_ROWS = 17
"""cuBLAS multiplies integers of more than 16 rows only; torch refuses fewer."""

_SHIFT = 128


class IntegerLinear(nn.Module):
    """Multiplies activation codes by weight codes in int8, and scales the int32 sums.

        y = (qₓ - z) Wqᵀ · sₓ · s_w + b = (qₓ Wqᵀ - z Σ Wq) · (sₓ s_w) + b

    The sums are exact; against the same product of dequantized values the result moves by the
    rounding of float32 only. Unsigned codes are read as signed ones, moved down by 128.

    Args:
        codes: The weight's codes, shape (out, in), int8.
        scales: Per output channel, shape (out,).
        bias: Shape (out,), None for none.
        scale: Of the activation.
        zero_point: Of the activation.
        dtype: Of the result.
    """

    codes: Tensor
    sums: Tensor
    factors: Tensor
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        scale: float,
        zero_point: int,
        is_unsigned: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        moved = zero_point - _SHIFT if is_unsigned else zero_point
        self.register_buffer("codes", codes)
        self.register_buffer("sums", codes.sum(1, dtype=torch.int32) * moved)
        self.register_buffer("factors", scales.float() * scale)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.is_unsigned = is_unsigned
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Takes the activation's codes, shape (..., in), int8 or uint8."""
        signed = x.bitwise_xor(_SHIFT).view(torch.int8) if self.is_unsigned else x
        rows = signed.reshape(-1, signed.shape[-1])
        values = (self._product(rows) - self.sums).float() * self.factors
        if self.bias is not None:
            values = values + self.bias
        return values.to(self.dtype).reshape(*x.shape[:-1], -1)

    def _product(self, rows: Tensor) -> Tensor:
        count = rows.shape[0]
        if not rows.is_cuda or count >= _FEWEST_ROWS:
            return _multiply(rows, self.codes.t())
        padded = torch.constant_pad_nd(rows, (0, 0, 0, _FEWEST_ROWS - count))
        return _multiply(padded, self.codes.t())[:count]
