"""Inductor: torch's own compiler, here with its int8 kernels for x86 processors."""

import torch

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS, FLOAT_OPS
from embedl_deploy.backends.x86_costs import X86_VNNI_COSTS
from embedl_deploy.patterns.fusion import (
    FuseAttention,
    FuseConvActivation,
    FuseConvNorm,
    FuseConvNormActivation,
    FuseConvNormAdd,
    FuseConvNormAddActivation,
    FuseLinearActivation,
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
from embedl_deploy.quantization.precision import Dynamic, Precision
from embedl_deploy.rewriting.backend import Backend

INDUCTOR = Backend(
    name="inductor",
    conversion_patterns=ANY_TARGET_CONVERSIONS,
    fusion_patterns=(
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
    engines=("inductor", "openvino", "onnxruntime", "eager"),
    formats=(Precision.INT8,),
    placement=Placement(
        activation_dtype=torch.uint8,
        # int4 codes lie in int8, which the kernels take: half the bytes only in a file.
        weight_precisions=(Precision.INT8, Precision.INT4),
        dynamic_activations=(Dynamic.PER_TENSOR,),
        decisions={
            **FLOAT_OPS,
            "first-layer": Decision(
                quantized=True,
                reason="oneDNN's int8 kernels take any number of channels, and a stem is a large "
                "part of a small network",
            ),
            "last-layer": Decision(
                quantized=True,
                reason="its output stays in float, so that only its operands are rounded; its "
                "share in the error is in quantization_report",
            ),
            "depthwise-conv": Decision(
                quantized=True,
                reason="oneDNN has int8 kernels for it: float would break a chain of int8 layers",
            ),
            "head-1x1": Decision(
                quantized=True,
                reason="it is a linear layer, and those run in int8 at one row as well",
            ),
            "product-with-a-dimension-of-1": Decision(
                quantized=True,
                reason="reading its weight takes most of its time, and int8 is a quarter of it",
            ),
            "bare-add": Decision(
                quantized=False,
                reason="Inductor has no int8 kernel for sums: it fuses them with their neighbours",
            ),
            "share-through-concat": Decision(
                quantized=False,
                reason="one scale for all its operands would be the coarsest of theirs, for each "
                "reader",
            ),
            QuantizeResidual.name: Decision(
                quantized=True,
                reason="no other kernel reads the skip connection in int8, and a quantizer for the "
                "add alone costs more than it saves (ResNet-50: 13.8 ms against 12.2)",
                only_if_shared=True,
            ),
            QuantizeAttentionProducts.name: Decision(
                quantized=False,
                reason="Inductor has no int8 kernel for the products of attention on x86",
            ),
        },
    ),
    costs=X86_VNNI_COSTS,
)
