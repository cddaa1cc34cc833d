"""TensorRT: NVIDIA's inference library."""

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
    engines=("tensorrt", "inductor", "eager"),
)
