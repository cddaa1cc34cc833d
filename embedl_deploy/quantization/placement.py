"""Where and in which form a target wants quantizers: data of a backend's table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from embedl_deploy.quantization.precision import Precision


@dataclass(frozen=True)
class Decision:
    """Whether a target quantizes one kind of operand, and why."""

    quantized: bool
    reason: str


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
    """By the role a quantized pattern gives to an operand. A role without one is quantized."""

    def __post_init__(self) -> None:
        if self.activation_dtype not in (torch.int8, torch.uint8):
            raise ValueError(
                f"activation_dtype must be torch.int8 or torch.uint8, got {self.activation_dtype}"
            )
        if self.symmetric_activations and self.activation_dtype is torch.uint8:
            raise ValueError("symmetric activations need a signed dtype, got torch.uint8")

    def decision(self, role: str) -> Decision:
        """Returns the table's word on operands of this role."""
        return self.decisions.get(role, Decision(quantized=True, reason="the target runs it"))
