"""Rules that make one module per thing the target runs as one kernel."""

from embedl_deploy.patterns.fusion.fuse_attention import FuseAttention
from embedl_deploy.patterns.fusion.fuse_conv_activation import FuseConvActivation
from embedl_deploy.patterns.fusion.fuse_conv_norm import FuseConvNorm
from embedl_deploy.patterns.fusion.fuse_conv_norm_activation import FuseConvNormActivation
from embedl_deploy.patterns.fusion.fuse_conv_norm_add import FuseConvNormAdd
from embedl_deploy.patterns.fusion.fuse_conv_norm_add_activation import FuseConvNormAddActivation
from embedl_deploy.patterns.fusion.fuse_linear_activation import FuseLinearActivation
from embedl_deploy.patterns.fusion.fuse_norm_linear import FuseNormLinear
from embedl_deploy.patterns.fusion.fuse_stem_pool import FuseStemPool

__all__ = [
    "FuseAttention",
    "FuseConvActivation",
    "FuseConvNorm",
    "FuseConvNormActivation",
    "FuseConvNormAdd",
    "FuseConvNormAddActivation",
    "FuseLinearActivation",
    "FuseNormLinear",
    "FuseStemPool",
]
