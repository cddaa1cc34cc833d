"""A linear layer on float8 codes: one product in float8, with the graph's own scales."""

# pyright: reportPrivateUsage=false
# torch keeps its float8 product private; there is no other door.

from typing import Protocol, cast

import torch
from torch import Tensor, nn


class Float8Linear(nn.Module):
    """Multiplies activations and weights in float8, and scales the float32 sums.

        y = (qₓ W_qᵀ) · (sₓ s_w) + b

    Products of two float8 values are exact in float32; against the same product of dequantized
    values the result moves by the rounding of sums, about 1e-6 relative on processors. Tensor
    cores add float8 products up in fewer bits, about 1e-3.

    Args:
        codes: The weight's codes, shape (out, in), float8.
        scales: Per output channel, shape (out,).
        bias: Shape (out,), None for none.
        scale: Of the activation.
        dtype: Of the result.
    """

    codes: Tensor
    factors: Tensor
    one: Tensor
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("factors", scales.float() * scale)
        self.register_buffer("one", torch.ones((), device=codes.device))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Takes the activation's codes, shape (..., in), float8."""
        rows = x.reshape(-1, x.shape[-1])
        # Scales of 1 and float32 out run on every device with float8; one scale per channel of
        # the kernel's own would ask for a newer one, and for bfloat16 results.
        sums = _multiply(rows, self.codes.t(), self.one, self.one, out_dtype=torch.float32)
        values = sums * self.factors
        if self.bias is not None:
            values = values + self.bias
        return values.to(self.dtype).reshape(*x.shape[:-1], -1)


class _ScaledProduct(Protocol):
    def __call__(
        self, left: Tensor, right: Tensor, left_scale: Tensor, right_scale: Tensor, *,
        out_dtype: torch.dtype,
    ) -> Tensor: ...  # fmt: skip


_multiply = cast("_ScaledProduct", torch.ops.aten._scaled_mm.default)
