"""TensorRT: NVIDIA's inference library."""

import torch

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS
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
            QuantizeAttentionProducts.name: Decision(
                quantized=False,
                reason="TensorRT's fused attention kernel takes float operands; quantizers "
                "between its products break it up",
            ),
        },
    ),
)
