"""A convolution with the norm, residual add and activation that follow it."""

import torch
from torch import Tensor, nn

from embedl_deploy.modules.convolve import convolve
from embedl_deploy.modules.fold import fold_norm, norm_scale, scale_output_channels
from embedl_deploy.modules.fused import WeightedFused, activate
from embedl_deploy.modules.kinds import (
    TRANSPOSED_CONVOLUTIONS,
    BatchNorm,
    Convolution,
)


class FusedConv(WeightedFused):
    """Computes ``activation(norm(conv(x)) + residual)``; all but the convolution optional.

    One class serves 1-D, 2-D, 3-D and transposed convolutions. Its subclasses only give names
    to the combinations; ``fused_conv`` picks the one that fits.

    While the norm is in training mode and the weight is quantized, the folded weight W·s uses
    the running statistics and the output is divided by s before the norm sees it, so that batch
    statistics still normalise and are still tracked.

    Source: Krishnamoorthi 2018, section 3.2.2, https://arxiv.org/abs/1806.08342
    """

    conv: Convolution
    norm: BatchNorm | None
    activation: nn.Module | None

    def __init__(
        self,
        conv: Convolution,
        norm: BatchNorm | None = None,
        activation: nn.Module | None = None,
        adds_residual: bool = False,
    ) -> None:
        super().__init__()
        if conv.padding_mode != "zeros":
            raise ValueError(
                "a fused convolution needs padding_mode='zeros', got "
                f"padding_mode={conv.padding_mode!r}: pad with nn.functional.pad first"
            )
        self._hold(conv=conv, norm=norm, activation=activation)
        self.adds_residual = adds_residual

    @property
    def weighted(self) -> nn.Module:
        return self.conv

    @property
    def weight_axis(self) -> int:
        """The axis of output channels; in a grouped transposed convolution, those of one group."""
        return 1 if isinstance(self.conv, TRANSPOSED_CONVOLUTIONS) else 0

    def folded_weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        if self.norm is None:
            return self.conv.weight, self.conv.bias
        return fold_norm(self.conv, self.norm)

    def run_parts(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = self.conv(x)
        return self._finish(activate(self.norm, y), residual)

    def run_folded(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
    ) -> Tensor:
        return self._finish(self.layer_output(x, weight, bias), residual)

    def layer_output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(self.conv, x, weight, bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.weight_fake_quant is None or self.norm is None or not self.norm.training:
            return super().forward(x, residual)
        return self._finish(self._normalise_batch(x, self.norm), residual)

    def _normalise_batch(self, x: Tensor, norm: BatchNorm) -> Tensor:
        """Returns norm(conv(x)) by batch statistics, the weight quantized as it will be folded."""
        scale = norm_scale(norm)
        # A scale of zero would divide by zero here; any other value gives the same output.
        scale = torch.where(scale.abs() < 1e-6, torch.ones_like(scale), scale)
        weight = scale_output_channels(self.conv, scale).to(self.conv.weight.dtype)
        assert self.weight_fake_quant is not None
        y = convolve(self.conv, x, self.weight_fake_quant(weight), None)
        per_channel = (1, -1) + (1,) * (y.dim() - 2)
        y = y / scale.to(y.dtype).reshape(per_channel)
        if self.conv.bias is not None:
            y = y + self.conv.bias.reshape(per_channel)
        return activate(norm, y)

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        if self.adds_residual:
            assert residual is not None
            y = y + residual
        return activate(self.activation, y)

    def extra_repr(self) -> str:
        kind = "" if isinstance(self.conv, nn.Conv2d) else f"{type(self.conv).__name__}, "
        named = self.activation is None or type(self).__name__.endswith("ReLU")
        activation = "" if named else f", activation={self.activation}"
        return f"{kind}{self.conv.extra_repr()}{activation}"


class FusedConvReLU(FusedConv):
    """``relu(conv(x))``."""


class FusedConvAct(FusedConv):
    """``activation(conv(x))``."""


class FusedConvAdd(FusedConv):
    """``conv(x) + residual``."""


class FusedConvAddReLU(FusedConv):
    """``relu(conv(x) + residual)``."""


class FusedConvAddAct(FusedConv):
    """``activation(conv(x) + residual)``."""


class FusedConvBN(FusedConv):
    """``norm(conv(x))``."""


class FusedConvBNReLU(FusedConv):
    """``relu(norm(conv(x)))``."""


class FusedConvBNAct(FusedConv):
    """``activation(norm(conv(x)))``."""


class FusedConvBNAdd(FusedConv):
    """``norm(conv(x)) + residual``."""


class FusedConvBNAddReLU(FusedConv):
    """``relu(norm(conv(x)) + residual)``."""


class FusedConvBNAddAct(FusedConv):
    """``activation(norm(conv(x)) + residual)``."""


_BY_NAME: dict[str, type[FusedConv]] = {
    kind.__name__: kind
    for kind in (
        FusedConv,
        FusedConvReLU,
        FusedConvAct,
        FusedConvAdd,
        FusedConvAddReLU,
        FusedConvAddAct,
        FusedConvBN,
        FusedConvBNReLU,
        FusedConvBNAct,
        FusedConvBNAdd,
        FusedConvBNAddReLU,
        FusedConvBNAddAct,
    )
}


def fused_conv(
    conv: Convolution,
    norm: BatchNorm | None = None,
    activation: nn.Module | None = None,
    adds_residual: bool = False,
) -> FusedConv:
    """Returns the fused module of the class whose name says what it holds."""
    name = "FusedConv" + ("BN" if norm is not None else "") + ("Add" if adds_residual else "")
    if activation is not None:
        name += "ReLU" if type(activation) is nn.ReLU else "Act"
    return _BY_NAME[name](conv, norm, activation, adds_residual)
