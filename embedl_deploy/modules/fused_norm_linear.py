"""A layer norm with the one linear layer that reads it."""

from collections.abc import Callable

from torch import Tensor, nn

from embedl_deploy.modules.fused import activate
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.kinds import LinearLayer, RowNorm


class FusedNormLinear(FusedLinear):
    """Computes ``activation(linear(norm(x)))``; the activation is optional.

    The linear layer reads the normalised rows, not the module's input: its activation quantizer
    therefore goes into ``linear_input_stub``.
    """

    norm: RowNorm

    linear_input_stub: Callable[[Tensor], Tensor] | None
    """Quantizes the normalised rows, as a registered child; ``None`` leaves them in float."""

    def __init__(
        self, norm: RowNorm, linear: LinearLayer, activation: nn.Module | None = None
    ) -> None:
        super().__init__(linear, activation)
        self._part_names = ()
        self._hold(norm=norm, linear=linear, activation=activation)
        self.linear_input_stub = None

    def run_parts(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().run_parts(self._linear_input(x), residual)

    def layer_output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().layer_output(self._linear_input(x), weight, bias)

    def _linear_input(self, x: Tensor) -> Tensor:
        rows = activate(self.norm, x)
        return rows if self.linear_input_stub is None else self.linear_input_stub(rows)

    def extra_repr(self) -> str:
        return f"norm={self.norm}, {super().extra_repr()}"
