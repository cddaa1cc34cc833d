"""The one table from ATen operations, a norm's last one included, to the modules they compute."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch._ops import OpOverload

from embedl_deploy.tracing import lift_layers as layers
from embedl_deploy.tracing import lift_pools as pools
from embedl_deploy.tracing.lift_call import Call, Lifting
from embedl_deploy.tracing.lift_norms import rms_norm_by_hand

Row = Callable[[Call], Lifting]

_aten = torch.ops.aten


def _activation(module_class: type[nn.Module], **options: str) -> Row:
    """Returns the row of an activation; ``options`` maps constructor names to argument names."""

    def row(call: Call) -> Lifting:
        given = {name: call.option(argument) for name, argument in options.items()}
        return Lifting(module_class, given, (call.node_of(next(iter(call.bound))),))

    return row


LIFT_TABLE: Mapping[OpOverload, Row] = {
    _aten.conv1d.default: layers.convolution,
    _aten.conv2d.default: layers.convolution,
    _aten.conv3d.default: layers.convolution,
    _aten.conv1d.padding: layers.convolution,
    _aten.conv2d.padding: layers.convolution,
    _aten.conv3d.padding: layers.convolution,
    _aten.convolution.default: layers.general_convolution,
    _aten.conv_transpose1d.default: layers.transposed_convolution,
    _aten.conv_transpose2d.input: layers.transposed_convolution,
    _aten.conv_transpose3d.input: layers.transposed_convolution,
    _aten.linear.default: layers.linear,
    _aten.addmm.default: layers.addmm,
    _aten.mm.default: layers.matmul,
    _aten.matmul.default: layers.matmul,
    _aten.embedding.default: layers.embedding,
    _aten.batch_norm.default: layers.batch_norm,
    _aten._native_batch_norm_legit_no_training.default: layers.native_batch_norm,
    _aten.layer_norm.default: layers.layer_norm,
    _aten.native_layer_norm.default: layers.native_layer_norm,
    _aten.rms_norm.default: layers.rms_norm,
    _aten.mul.Tensor: rms_norm_by_hand,
    _aten.group_norm.default: layers.group_norm,
    _aten.instance_norm.default: layers.instance_norm,
    _aten.prelu.default: layers.prelu,
    _aten.relu.default: _activation(nn.ReLU),
    _aten.relu6.default: _activation(nn.ReLU6),
    _aten.hardtanh.default: layers.hardtanh,
    _aten.gelu.default: _activation(nn.GELU, approximate="approximate"),
    _aten.silu.default: _activation(nn.SiLU),
    _aten.hardswish.default: _activation(nn.Hardswish),
    _aten.hardsigmoid.default: _activation(nn.Hardsigmoid),
    _aten.sigmoid.default: _activation(nn.Sigmoid),
    _aten.tanh.default: _activation(nn.Tanh),
    _aten.mish.default: _activation(nn.Mish),
    _aten.selu.default: _activation(nn.SELU),
    _aten.celu.default: _activation(nn.CELU, alpha="alpha"),
    _aten.elu.default: layers.elu,
    _aten.leaky_relu.default: _activation(nn.LeakyReLU, negative_slope="negative_slope"),
    _aten.softplus.default: _activation(nn.Softplus, beta="beta", threshold="threshold"),
    _aten.log_sigmoid.default: _activation(nn.LogSigmoid),
    _aten.hardshrink.default: _activation(nn.Hardshrink, lambd="lambd"),
    _aten.softshrink.default: _activation(nn.Softshrink, lambd="lambd"),
    _aten.threshold.default: _activation(nn.Threshold, threshold="threshold", value="value"),
    _aten.glu.default: _activation(nn.GLU, dim="dim"),
    _aten.dropout.default: pools.dropout(nn.Dropout),
    _aten.feature_dropout.default: pools.feature_dropout,
    _aten.alpha_dropout.default: pools.dropout(nn.AlphaDropout),
    _aten.max_pool1d.default: pools.max_pool(nn.MaxPool1d),
    _aten.max_pool2d.default: pools.max_pool(nn.MaxPool2d),
    _aten.max_pool3d.default: pools.max_pool(nn.MaxPool3d),
    _aten.max_pool2d_with_indices.default: pools.max_pool(nn.MaxPool2d, first=True),
    _aten.max_pool3d_with_indices.default: pools.max_pool(nn.MaxPool3d, first=True),
    _aten.avg_pool1d.default: pools.average_pool(nn.AvgPool1d),
    _aten.avg_pool2d.default: pools.average_pool(nn.AvgPool2d),
    _aten.avg_pool3d.default: pools.average_pool(nn.AvgPool3d),
    _aten.adaptive_avg_pool1d.default: pools.adaptive_pool(nn.AdaptiveAvgPool1d),
    _aten.adaptive_avg_pool2d.default: pools.adaptive_pool(nn.AdaptiveAvgPool2d),
    _aten.adaptive_avg_pool3d.default: pools.adaptive_pool(nn.AdaptiveAvgPool3d),
    _aten._adaptive_avg_pool2d.default: pools.adaptive_pool(nn.AdaptiveAvgPool2d),
    _aten._adaptive_avg_pool3d.default: pools.adaptive_pool(nn.AdaptiveAvgPool3d),
    _aten.adaptive_max_pool1d.default: pools.adaptive_pool(nn.AdaptiveMaxPool1d, first=True),
    _aten.adaptive_max_pool2d.default: pools.adaptive_pool(nn.AdaptiveMaxPool2d, first=True),
    _aten.adaptive_max_pool3d.default: pools.adaptive_pool(nn.AdaptiveMaxPool3d, first=True),
}
