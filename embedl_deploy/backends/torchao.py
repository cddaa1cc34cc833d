"""TorchAO: weight-only and dynamic quantization of linear layers."""

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS, FLOAT_OPS
from embedl_deploy.patterns.fusion import FuseAttention, FuseLinearActivation
from embedl_deploy.patterns.quantized import QuantizeLinear, QuantizeNormLinear
from embedl_deploy.patterns.smooth import MoveOutliersIntoLinears, ScaleBeforeLinears
from embedl_deploy.quantization.placement import Decision, Placement
from embedl_deploy.quantization.precision import Dynamic, Precision
from embedl_deploy.rewriting.backend import Backend

_ANY_LINEAR = "TorchAO's kernels take linear layers of any size"
_LINEAR_ONLY = "TorchAO has low-precision kernels for linear layers only"

TORCHAO = Backend(
    name="torchao",
    conversion_patterns=ANY_TARGET_CONVERSIONS,
    fusion_patterns=(FuseLinearActivation, FuseAttention),
    smooth_patterns=(MoveOutliersIntoLinears, ScaleBeforeLinears),
    quantized_patterns=(QuantizeLinear, QuantizeNormLinear),
    engines=("torchao", "inductor", "eager"),
    formats=(Precision.INT8, Precision.INT4),
    placement=Placement(
        weight_precisions=(Precision.INT8, Precision.INT4),
        dynamic_activations=(Dynamic.PER_TOKEN, Dynamic.PER_TENSOR),
        decisions={
            **FLOAT_OPS,
            "first-layer": Decision(quantized=True, reason=_ANY_LINEAR),
            "last-layer": Decision(quantized=True, reason=_ANY_LINEAR),
            "product-with-a-dimension-of-1": Decision(quantized=True, reason=_ANY_LINEAR),
            "depthwise-conv": Decision(quantized=False, reason=_LINEAR_ONLY),
            "head-1x1": Decision(quantized=False, reason=_LINEAR_ONLY),
            "quantize-residual": Decision(quantized=False, reason=_LINEAR_ONLY),
            "quantize-attention-products": Decision(quantized=False, reason=_LINEAR_ONLY),
            "bare-add": Decision(quantized=False, reason=_LINEAR_ONLY),
            "share-through-concat": Decision(quantized=False, reason=_LINEAR_ONLY),
        },
    ),
)
