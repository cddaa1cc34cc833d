"""A linear layer with the activation that follows it."""

from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.fused import WeightedFused, activate
from embedl_deploy.modules.kinds import LinearLayer


class FusedLinear(WeightedFused):
    """Computes ``activation(linear(x))``; the activation is optional.

    Takes ``nn.Linear``, weight (out, in), and ``TransposedLinear``, weight (in, out).
    """

    linear: LinearLayer
    activation: nn.Module | None

    def __init__(self, linear: LinearLayer, activation: nn.Module | None = None) -> None:
        super().__init__()
        self._hold(linear=linear, activation=activation)

    @property
    def weighted(self) -> nn.Module:
        return self.linear

    @property
    def weight_axis(self) -> int:
        return 1 if isinstance(self.linear, TransposedLinear) else 0

    def folded_weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        return self.linear.weight, self.linear.bias

    def run_parts(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        assert residual is None
        y: Tensor = self.linear(x)
        return activate(self.activation, y)

    def run_folded(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        assert residual is None
        return activate(self.activation, self.layer_output(x, weight, bias))

    def layer_output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return multiply(self.linear, x, weight, bias)

    def extra_repr(self) -> str:
        kind = "" if isinstance(self.linear, nn.Linear) else f"{type(self.linear).__name__}, "
        named = self.activation is None or isinstance(self, FusedLinearReLU)
        activation = "" if named else f", activation={self.activation}"
        return f"{kind}{self.linear.extra_repr()}{activation}"


class FusedLinearReLU(FusedLinear):
    """``relu(linear(x))``."""


class FusedLinearAct(FusedLinear):
    """``activation(linear(x))``."""


def fused_linear(linear: LinearLayer, activation: nn.Module | None = None) -> FusedLinear:
    """Returns the fused module of the class whose name says what it holds."""
    if activation is None:
        return FusedLinear(linear)
    kind = FusedLinearReLU if type(activation) is nn.ReLU else FusedLinearAct
    return kind(linear, activation)


def multiply(linear: LinearLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns what ``linear(x)`` would if its parameters were ``weight`` and ``bias``."""
    if isinstance(linear, nn.Linear):
        return functional.linear(x, weight, bias)
    y = x @ weight
    return y if bias is None else y + bias
