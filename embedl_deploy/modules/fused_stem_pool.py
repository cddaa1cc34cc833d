"""The stem of a convolutional net: convolution, norm, activation and max pooling."""

from torch import Tensor, nn

from embedl_deploy.modules.fused_conv import FusedConv
from embedl_deploy.modules.kinds import BatchNorm, Convolution


class FusedStemPool(FusedConv):
    """Computes ``pool(activation(norm(conv(x))))``; norm and activation optional."""

    pool: nn.Module

    def __init__(
        self,
        conv: Convolution,
        norm: BatchNorm | None,
        activation: nn.Module | None,
        pool: nn.Module,
    ) -> None:
        super().__init__(conv, norm, activation)
        self._hold(pool=pool)

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        pooled: Tensor = self.pool(super()._finish(y, residual))
        return pooled

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pool={self.pool}"
