"""TensorRT: NVIDIA's inference library."""

import torch

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS, FLOAT_OPS
from embedl_deploy.patterns.conversion import ReplaceFlattenLinearWithConv1x1
from embedl_deploy.patterns.fusion import (
    FuseAttention,
    FuseConvActivation,
    FuseConvNorm,
    FuseConvNormActivation,
    FuseConvNormAdd,
    FuseConvNormAddActivation,
    FuseLinearActivation,
    FuseStemPool,
)
from embedl_deploy.patterns.quantized import (
    QuantizeAttentionProducts,
    QuantizeConv,
    QuantizeLinear,
    QuantizeNormLinear,
    QuantizeResidual,
)
from embedl_deploy.patterns.smooth import MoveOutliersIntoLinears, ScaleBeforeLinears
from embedl_deploy.quantization.placement import Decision, Placement
from embedl_deploy.quantization.precision import Precision
from embedl_deploy.rewriting.backend import Backend

TENSORRT = Backend(
    name="tensorrt",
    conversion_patterns=(*ANY_TARGET_CONVERSIONS, ReplaceFlattenLinearWithConv1x1),
    fusion_patterns=(
        FuseStemPool,
        FuseConvNormAddActivation,
        FuseConvNormAdd,
        FuseConvNormActivation,
        FuseConvNorm,
        FuseConvActivation,
        FuseLinearActivation,
        FuseAttention,
    ),
    smooth_patterns=(MoveOutliersIntoLinears, ScaleBeforeLinears),
    quantized_patterns=(
        QuantizeConv,
        QuantizeLinear,
        QuantizeNormLinear,
        QuantizeResidual,
        QuantizeAttentionProducts,
    ),
    engines=("tensorrt", "inductor", "eager"),
    formats=(Precision.INT8, Precision.FP8_E4M3),
    placement=Placement(
        activation_dtype=torch.int8,
        symmetric_activations=True,
        activation_precisions=(Precision.INT8, Precision.FP8_E4M3),
        weight_precisions=(Precision.INT8, Precision.FP8_E4M3, Precision.INT4),
        decisions={
            **FLOAT_OPS,
            "first-layer": Decision(
                quantized=True, reason="TensorRT has int8 kernels for convolutions of images"
            ),
            "last-layer": Decision(
                quantized=True, reason="its output stays in float: only its operands are rounded"
            ),
            "depthwise-conv": Decision(
                quantized=True, reason="TensorRT has int8 kernels for grouped convolutions"
            ),
            "head-1x1": Decision(quantized=True, reason="it runs as the matrix product it is"),
            "product-with-a-dimension-of-1": Decision(
                quantized=True,
                reason="no measurement on the target says that float is faster there",
            ),
            "bare-add": Decision(
                quantized=False, reason="TensorRT fuses sums with their neighbours in float"
            ),
            "share-through-concat": Decision(
                quantized=False,
                reason="one scale for all its operands would be the coarsest of theirs, for each "
                "reader",
            ),
            QuantizeResidual.name: Decision(
                quantized=True,
                reason="the kernel of the convolution adds the residual, and reads it in int8",
            ),
            QuantizeAttentionProducts.name: Decision(
                quantized=False,
                reason="TensorRT's fused attention kernel takes float operands; quantizers "
                "between its products break it up",
            ),
        },
    ),
)
