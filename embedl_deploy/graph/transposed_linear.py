"""A linear layer whose weight is stored input-major."""

import torch
from torch import Tensor, nn


class TransposedLinear(nn.Module):
    """Computes ``x @ weight + bias`` with ``weight`` of shape (in, out).

    ``nn.Linear`` stores (out, in). Layers written as ``addmm`` (GPT-2's ``Conv1D``) store the
    transpose, and a transposed view is no ``Parameter``: this class keeps the parameter as it is.
    """

    weight: nn.Parameter
    """Shape (in, out)."""

    bias: nn.Parameter | None
    """Shape (out,), or ``None``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(
            torch.empty(in_features, out_features, device=device, dtype=dtype)
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fills weight and bias as ``nn.Linear`` does."""
        bound = self.in_features**-0.5 if self.in_features else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if self.bias is None:
            return x @ self.weight
        # addmm is what such layers call: the same kernel gives the same bits.
        if x.dim() == 2:
            return torch.addmm(self.bias, x, self.weight)
        flat = torch.addmm(self.bias, x.reshape(-1, self.in_features), self.weight)
        return flat.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
