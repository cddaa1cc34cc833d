"""What every target has in common: conversions that help it, and what it runs in float."""

from embedl_deploy.patterns.conversion import (
    DecomposeAttention,
    RemoveAssert,
    RemoveIdentity,
    RemoveIdentityPool,
    RemoveNoOpArithmetic,
    RemoveNoOpCast,
    RemoveNoOpCopy,
    RemoveNoOpReshape,
    RemoveReshapeAroundLinear,
    ReplaceEinsumWithMatmul,
    ReplaceProductWithLinear,
)
from embedl_deploy.patterns.recomposition import (
    RecomposeAttention,
    RecomposeGelu,
    RecomposeQuickGelu,
    RecomposeSilu,
)
from embedl_deploy.quantization.placement import Decision

ANY_TARGET_CONVERSIONS = (
    RemoveAssert,
    RemoveIdentity,
    RemoveNoOpCast,
    RemoveNoOpCopy,
    RemoveNoOpReshape,
    RemoveNoOpArithmetic,
    RemoveIdentityPool,
    RemoveReshapeAroundLinear,
    ReplaceProductWithLinear,
    ReplaceEinsumWithMatmul,
    RecomposeGelu,
    RecomposeQuickGelu,
    RecomposeSilu,
    RecomposeAttention,
    DecomposeAttention,
)

FLOAT_OPS = {
    "softmax-input": Decision(
        quantized=False,
        reason="softmax is computed in float: rounding what it reads would only lose precision",
    ),
    "norm-input": Decision(
        quantized=False,
        reason="norms are computed in float: rounding what they read would only lose precision",
    ),
    "embedding": Decision(
        quantized=False,
        reason="rows are looked up, not multiplied: no kernel would run in low precision",
    ),
    "recurrent-layer": Decision(
        quantized=False,
        reason="all its steps are one op, and no kernel takes that op in low precision",
    ),
}
"""What no target at hand has a low-precision kernel for."""
