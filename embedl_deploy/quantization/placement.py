"""Where and in which form a target wants quantizers: data of a backend's table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from embedl_deploy.quantization.precision import Precision


@dataclass(frozen=True)
class Decision:
    """Whether a target quantizes the operands that one pattern names, and why."""

    quantized: bool
    reason: str
    only_if_shared: bool = False
    """Quantized where another reader has the tensor quantized anyway, left in float elsewhere."""


@dataclass(frozen=True)
class Placement:
    """How one target takes quantized tensors."""

    activation_dtype: torch.dtype = torch.int8
    """int8, or uint8 where the kernels multiply unsigned activations by signed weights."""

    symmetric_activations: bool = False
    """The target takes no zero point on activations."""

    activation_precisions: tuple[Precision, ...] = (Precision.INT8,)
    weight_precisions: tuple[Precision, ...] = (Precision.INT8,)
    decisions: Mapping[str, Decision] = field(default_factory=lambda: MappingProxyType({}))
    """By the name of a quantized pattern, or ``share-through-reshape``, ``share-through-max-pool``
    and ``share-through-concat``. One that is not named is applied, except for concatenation."""

    def __post_init__(self) -> None:
        if self.activation_dtype not in (torch.int8, torch.uint8):
            raise ValueError(
                f"activation_dtype must be torch.int8 or torch.uint8, got {self.activation_dtype}"
            )
        if self.symmetric_activations and self.activation_dtype is torch.uint8:
            raise ValueError("symmetric activations need a signed dtype, got torch.uint8")

    def decision(self, pattern: str) -> Decision:
        """Returns the table's word on the operands that a pattern names."""
        known = _CONCAT if pattern == "share-through-concat" else _RUNS
        return self.decisions.get(pattern, known)


_RUNS = Decision(quantized=True, reason="the target runs it")
_CONCAT = Decision(
    quantized=False,
    reason="one scale for all its operands would be the coarsest of theirs, for each reader",
)
