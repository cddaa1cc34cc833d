"""Rules that spell a graph the way a target can take it."""

from embedl_deploy.patterns.conversion.decompose_attention import DecomposeAttention
from embedl_deploy.patterns.conversion.remove_assert import RemoveAssert
from embedl_deploy.patterns.conversion.remove_dropout import RemoveDropout
from embedl_deploy.patterns.conversion.remove_identity import RemoveIdentity
from embedl_deploy.patterns.conversion.remove_identity_pool import RemoveIdentityPool
from embedl_deploy.patterns.conversion.remove_no_op_arithmetic import RemoveNoOpArithmetic
from embedl_deploy.patterns.conversion.remove_no_op_cast import RemoveNoOpCast
from embedl_deploy.patterns.conversion.remove_no_op_copy import RemoveNoOpCopy
from embedl_deploy.patterns.conversion.remove_no_op_reshape import RemoveNoOpReshape
from embedl_deploy.patterns.conversion.remove_reshape_around_linear import (
    RemoveReshapeAroundLinear,
)
from embedl_deploy.patterns.conversion.replace_einsum_with_matmul import ReplaceEinsumWithMatmul
from embedl_deploy.patterns.conversion.replace_flatten_linear_with_conv1x1 import (
    ReplaceFlattenLinearWithConv1x1,
)
from embedl_deploy.patterns.conversion.replace_product_with_linear import (
    ReplaceProductWithLinear,
)

__all__ = [
    "DecomposeAttention",
    "RemoveAssert",
    "RemoveDropout",
    "RemoveIdentity",
    "RemoveIdentityPool",
    "RemoveNoOpArithmetic",
    "RemoveNoOpCast",
    "RemoveNoOpCopy",
    "RemoveNoOpReshape",
    "RemoveReshapeAroundLinear",
    "ReplaceEinsumWithMatmul",
    "ReplaceFlattenLinearWithConv1x1",
    "ReplaceProductWithLinear",
]
