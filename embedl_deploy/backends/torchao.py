"""TorchAO: weight-only and dynamic quantization of linear layers."""

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS
from embedl_deploy.patterns.fusion import FuseAttention, FuseLinearActivation
from embedl_deploy.rewriting.backend import Backend

TORCHAO = Backend(
    name="torchao",
    conversion_patterns=ANY_TARGET_CONVERSIONS,
    fusion_patterns=(FuseLinearActivation, FuseAttention),
    engines=("torchao", "inductor", "eager"),
)
