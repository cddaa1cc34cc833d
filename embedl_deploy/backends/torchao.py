"""TorchAO: weight-only and dynamic quantization of linear layers."""

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS
from embedl_deploy.patterns.fusion import FuseAttention, FuseLinearActivation
from embedl_deploy.patterns.quantized import QuantizeLinear, QuantizeNormLinear
from embedl_deploy.patterns.smooth import MoveOutliersIntoLinears, ScaleBeforeLinears
from embedl_deploy.quantization.placement import Placement
from embedl_deploy.quantization.precision import Precision
from embedl_deploy.rewriting.backend import Backend

TORCHAO = Backend(
    name="torchao",
    conversion_patterns=ANY_TARGET_CONVERSIONS,
    fusion_patterns=(FuseLinearActivation, FuseAttention),
    smooth_patterns=(MoveOutliersIntoLinears, ScaleBeforeLinears),
    quantized_patterns=(QuantizeLinear, QuantizeNormLinear),
    engines=("torchao", "inductor", "eager"),
    formats=(Precision.INT8, Precision.INT4),
    placement=Placement(weight_precisions=(Precision.INT8, Precision.INT4)),
)
