"""The conversions that help every target."""

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
)
from embedl_deploy.patterns.recomposition import (
    RecomposeAttention,
    RecomposeGelu,
    RecomposeQuickGelu,
    RecomposeSilu,
)

ANY_TARGET_CONVERSIONS = (
    RemoveAssert,
    RemoveIdentity,
    RemoveNoOpCast,
    RemoveNoOpCopy,
    RemoveNoOpReshape,
    RemoveNoOpArithmetic,
    RemoveIdentityPool,
    RemoveReshapeAroundLinear,
    ReplaceEinsumWithMatmul,
    RecomposeGelu,
    RecomposeQuickGelu,
    RecomposeSilu,
    RecomposeAttention,
    DecomposeAttention,
)
