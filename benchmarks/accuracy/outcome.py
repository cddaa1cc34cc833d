"""What a tool makes of a subject."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.accuracy.subjects import Inputs
from embedl_deploy.cli.baselines import first_tensor


@dataclass(frozen=True)
class Outcome:
    """What a tool's quantized and lowered model gives."""

    outputs: Tensor
    """Shape (inputs, …)."""

    share: float | None = None
    """Of the multiply-accumulates with int8 on both operands; None where the form does not tell."""

    linears: tuple[int, int] | None = None
    """Linear layers with int8 on both operands, and all of them."""


def outputs_of(call: Callable[..., object], rows: Iterable[Inputs]) -> Tensor:
    """Returns the first output for each input, one after another, in float32."""
    with torch.no_grad():
        return torch.cat([first_tensor(call(*row)).float().clone() for row in rows])
