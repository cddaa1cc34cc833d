"""Runs a convolution module's arithmetic with another weight and bias."""

from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.modules.kinds import Convolution


def convolve(conv: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns what ``conv(x)`` would if its parameters were ``weight`` and ``bias``."""
    if isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _convolve_forward(conv, x, weight, bias)
    return _convolve_transposed(conv, x, weight, bias)


def _convolve_forward(
    conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    run = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[conv.weight.dim()]
    return run(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _convolve_transposed(
    conv: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    assert not isinstance(conv.padding, str)  # only forward convolutions take "same"
    run = {
        3: functional.conv_transpose1d,
        4: functional.conv_transpose2d,
        5: functional.conv_transpose3d,
    }[conv.weight.dim()]
    return run(
        x,
        weight,
        bias,
        conv.stride,
        conv.padding,
        conv.output_padding,
        conv.groups,
        conv.dilation,
    )
