"""A backend to copy: everything a table can say, with a comment on each entry.

To add a target:

1. Copy this file, rename ``EXAMPLE``, and change the entries.
2. Offer it to others through an entry point of your own distribution, in its pyproject.toml:

       [project.entry-points."embedl_deploy.backends"]
       example = "your_package.your_module:EXAMPLE"

   The name left of the equals sign must be the ``name`` below. After ``pip install`` of your
   distribution, ``embedl_deploy.backend.set_backend("example")`` finds it.

Without an entry point, give the table itself: ``transform(model, args, backend=EXAMPLE)``.
"""

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS
from embedl_deploy.patterns.fusion import (
    FuseConvNorm,
    FuseConvNormActivation,
    FuseLinearActivation,
)
from embedl_deploy.patterns.quantized import (
    QuantizeAttentionProducts,
    QuantizeConv,
    QuantizeLinear,
)
from embedl_deploy.quantization.placement import Decision, Placement
from embedl_deploy.quantization.precision import Precision
from embedl_deploy.rewriting.backend import Backend

EXAMPLE = Backend(
    # What users type, and what reports and graphs remember.
    name="example",
    # Spell the graph the way the target can take it. They run until nothing changes any more,
    # so their order does not matter. Each must have `phase = Phase.CONVERSION`.
    conversion_patterns=ANY_TARGET_CONVERSIONS,
    # One module per kernel of the target. They run once, the larger match first: a convolution
    # with norm and activation becomes one FusedConvBNReLU, what is left a FusedConvBN.
    fusion_patterns=(FuseConvNormActivation, FuseConvNorm, FuseLinearActivation),
    # Rules that move outliers from activations into weights before quantization; none here.
    smooth_patterns=(),
    # What the target runs in low precision, and which of its operands get quantizers.
    quantized_patterns=(QuantizeConv, QuantizeLinear, QuantizeAttentionProducts),
    # Which engines may run the graph; the first that supports a node gets it.
    engines=("inductor", "eager"),
    # The precisions that the target has kernels for.
    formats=(Precision.INT8,),
    # How the target takes quantized tensors, and a reason for each exception.
    placement=Placement(
        symmetric_activations=True,
        decisions={
            QuantizeAttentionProducts.name: Decision(
                quantized=False, reason="the example target multiplies attention in float"
            ),
        },
    ),
)
