"""One place that multiplies and accumulates, as what decides its speed and nothing else."""

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["conv", "transposed conv", "linear", "matmul"]
Addend = Literal["", "codes", "float"]
Reads = Literal["codes", "bfloat16", "float32"]


@dataclass(frozen=True)
class Site:
    """A convolution, linear layer or matrix product with its shapes and its neighbours."""

    kind: Kind
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    """(out, in / groups, *kernel), (out, in), or the shape of a product's second operand."""

    output_shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    activation: str = ""
    """Class name of the activation fused behind it, "" for none."""

    residual: Addend = ""
    """How a fused addend arrives: dequantized from int8, in float, or not at all."""

    has_bias: bool = True
    reads: Reads = "float32"
    """How the input arrives where the layer is quantized.

    ``"codes"``: an int8 kernel or the quantizer of an earlier reader wrote int8; in a float build
    it is there in bfloat16. ``"bfloat16"``: a float kernel wrote it, int8 alone has to convert.
    ``"float32"``: a loop (norm, add, softmax) or the caller made it, both builds convert."""

    writes_codes: bool = False
    """Whether all that read the output read it quantized."""

    @property
    def is_depthwise(self) -> bool:
        """Tells whether every group of channels is a single one."""
        return self.kind == "conv" and self.groups > 1 and self.weight_shape[1] == 1

    @property
    def is_pointwise(self) -> bool:
        """Tells whether it is a convolution with a kernel of one position, in one group."""
        return self.kind == "conv" and self.groups == 1 and math.prod(self.weight_shape[2:]) == 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        if self.kind == "matmul":
            return math.prod(self.output_shape) * self.input_shape[-1]
        if self.kind == "linear":
            return math.prod(self.input_shape[:-1]) * math.prod(self.weight_shape)
        positions = self.input_shape if self.kind == "transposed conv" else self.output_shape
        rows = math.prod((positions[0], *positions[2:]))
        return rows * math.prod(self.weight_shape)

    @property
    def input_size(self) -> int:
        """Values read, those of the weight aside."""
        return math.prod(self.input_shape)

    @property
    def weight_size(self) -> int:
        """Values of the weight, or of a product's second operand."""
        return math.prod(self.weight_shape)

    @property
    def output_size(self) -> int:
        """Values written."""
        return math.prod(self.output_shape)
