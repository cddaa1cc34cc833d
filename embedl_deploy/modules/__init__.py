"""The fused and decomposed modules that patterns put into graphs."""

from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.modules.fused import Fused, WeightedFused
from embedl_deploy.modules.fused_conv import (
    FusedConv,
    FusedConvAct,
    FusedConvAdd,
    FusedConvAddAct,
    FusedConvAddReLU,
    FusedConvBN,
    FusedConvBNAct,
    FusedConvBNAdd,
    FusedConvBNAddAct,
    FusedConvBNAddReLU,
    FusedConvBNReLU,
    FusedConvReLU,
    fused_conv,
)
from embedl_deploy.modules.fused_linear import (
    FusedLinear,
    FusedLinearAct,
    FusedLinearReLU,
    fused_linear,
)
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.fused_stem_pool import FusedStemPool
from embedl_deploy.modules.linear_as_conv1x1 import LinearAsConv1x1
from embedl_deploy.modules.quick_gelu import QuickGELU

__all__ = [
    "Fused",
    "FusedAttention",
    "FusedConv",
    "FusedConvAct",
    "FusedConvAdd",
    "FusedConvAddAct",
    "FusedConvAddReLU",
    "FusedConvBN",
    "FusedConvBNAct",
    "FusedConvBNAdd",
    "FusedConvBNAddAct",
    "FusedConvBNAddReLU",
    "FusedConvBNReLU",
    "FusedConvReLU",
    "FusedLinear",
    "FusedLinearAct",
    "FusedLinearReLU",
    "FusedNormLinear",
    "FusedStemPool",
    "LinearAsConv1x1",
    "QuickGELU",
    "ScaledDotProductAttention",
    "TransposedLinear",
    "WeightedFused",
    "fused_conv",
    "fused_linear",
]
