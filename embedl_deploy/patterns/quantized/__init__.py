"""Rules that name what a target runs in low precision and where its quantizers stand."""

from embedl_deploy.patterns.quantized.quantize_attention_products import QuantizeAttentionProducts
from embedl_deploy.patterns.quantized.quantize_conv import QuantizeConv
from embedl_deploy.patterns.quantized.quantize_linear import QuantizeLinear
from embedl_deploy.patterns.quantized.quantize_norm_linear import QuantizeNormLinear
from embedl_deploy.patterns.quantized.quantize_residual import QuantizeResidual

__all__ = [
    "QuantizeAttentionProducts",
    "QuantizeConv",
    "QuantizeLinear",
    "QuantizeNormLinear",
    "QuantizeResidual",
]
