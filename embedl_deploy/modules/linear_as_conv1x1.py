"""A linear layer spelled as the 1×1 convolution that it equals on a 1×1 image."""

from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.modules.fused import WeightedFused, optional_parameter


class LinearAsConv1x1(WeightedFused):
    """Maps (batch, in, 1, 1) to (batch, out, 1, 1) with the weight of a linear layer.

    The kernel is a view, (out, in, 1, 1), of the same ``Parameter``: the state dict keeps its
    keys, and training the convolution trains the linear layer.
    """

    linear: nn.Linear

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._hold(linear=linear)

    @property
    def weighted(self) -> nn.Module:
        return self.linear

    def folded_weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        return self.linear.weight[:, :, None, None], self.linear.bias

    def run_parts(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weight, bias = self.folded_weight_and_bias()
        return self.run_folded(x, weight, bias, residual)

    def run_folded(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        assert residual is None
        return self.layer_output(x, weight, bias)

    def layer_output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv2d(x, weight, bias)

    def extra_repr(self) -> str:
        has_bias = optional_parameter(self.linear, "bias") is not None
        return f"{self.linear.in_features}, {self.linear.out_features}, bias={has_bias}"
