"""Inductor: torch's own compiler, here with its int8 kernels for x86 processors."""

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS
from embedl_deploy.patterns.fusion import (
    FuseAttention,
    FuseConvActivation,
    FuseConvNorm,
    FuseConvNormActivation,
    FuseConvNormAdd,
    FuseConvNormAddActivation,
    FuseLinearActivation,
)
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
    engines=("inductor", "eager"),
)
