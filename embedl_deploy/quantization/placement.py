"""Where and in which form a target wants quantizers: data of a backend's table."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from embedl_deploy.quantization.config import TensorQuantConfig
from embedl_deploy.quantization.precision import Dynamic, Precision

LAYER_DECISIONS = {
    "first-layer": "layers with a weight that no other one stands before",
    "last-layer": "layers with a weight that no other one stands behind",
    "depthwise-conv": "convolutions with one input channel per group",
    "head-1x1": "1×1 convolutions of images of one pixel",
    "product-with-a-dimension-of-1": "linear layers of one row, one input or one output",
}
"""Decisions about layers with a weight. One that says float leaves the layer in float."""

OTHER_DECISIONS = {
    "quantize-residual": "the residual that the kernel of a convolution adds",
    "bare-add": "sums that no kernel of a convolution takes in",
    "share-through-concat": "concatenation",
    "quantize-attention-products": "the two products of attention",
    "softmax-input": "the input of softmax outside of fused attention",
    "norm-input": "the input of norms that no convolution takes in",
    "embedding": "the rows of embeddings",
    "recurrent-layer": "LSTM, GRU and plain recurrent layers",
}
"""Decisions about everything else that other tools treat each in their own way."""

NAMED_DECISIONS = {**LAYER_DECISIONS, **OTHER_DECISIONS}
"""What every backend's table decides by name, and what each name stands for."""


@dataclass(frozen=True)
class Decision:
    """Whether a target quantizes the operands that one name stands for, and why."""

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
    dynamic_activations: tuple[Dynamic, ...] = ()
    """Which scales at run time its kernels take, for the activations of linear layers."""

    decisions: Mapping[str, Decision] = field(default_factory=lambda: MappingProxyType({}))
    """By one of ``NAMED_DECISIONS``, the name of a quantized pattern, ``share-through-reshape`` or
    ``share-through-max-pool``. One that is not named is applied, except for concatenation."""

    def __post_init__(self) -> None:
        if self.activation_dtype not in (torch.int8, torch.uint8):
            raise ValueError(
                f"activation_dtype must be torch.int8 or torch.uint8, got {self.activation_dtype}"
            )
        if self.symmetric_activations and self.activation_dtype is torch.uint8:
            raise ValueError("symmetric activations need a signed dtype, got torch.uint8")

    def accepted_activation(self, asked: TensorQuantConfig | None) -> TensorQuantConfig | None:
        """Returns the format that activations get where ``asked`` is asked for."""
        if asked is None or asked.symmetric or not self.symmetric_activations:
            return asked
        return replace(asked, symmetric=True)

    def decision(self, name: str) -> Decision:
        """Returns the table's word on the operands that a pattern or a decision names."""
        known = _CONCAT if name == "share-through-concat" else _RUNS
        return self.decisions.get(name, known)


_RUNS = Decision(quantized=True, reason="the target runs it")
_CONCAT = Decision(
    quantized=False,
    reason="one scale for all its operands would be the coarsest of theirs, for each reader",
)
