"""What must hold for convolutions, norms and residual adds to be fused."""

from embedl_deploy.graph.nodes import dtype_of, shape_of
from embedl_deploy.patterns.fusion.parts import convolution_of, norm_of
from embedl_deploy.patterns.shapes import same_shape
from embedl_deploy.rewriting import PatternMatch, Refusal


def objection_to_conv(match: PatternMatch) -> Refusal | None:
    """Returns why the match's ``conv`` cannot be fused, None if it can."""
    conv = convolution_of(match)
    if conv.padding_mode != "zeros":
        return Refusal(
            f"the convolution pads with padding_mode={conv.padding_mode!r}, kernels with zeros",
            match["conv"],
        )
    shape = shape_of(match["conv"])
    if shape is not None and len(shape) != conv.weight.dim():
        return Refusal("the convolution's input has no batch dimension", match["conv"])
    return None


def objection_to_norm(match: PatternMatch) -> Refusal | None:
    """Returns why the match's ``norm`` cannot be folded, None if it can or there is none."""
    norm = norm_of(match)
    if norm is not None and (norm.running_mean is None or norm.running_var is None):
        return Refusal("the norm keeps no running statistics to fold", match["norm"])
    return None


def objection_to_add(match: PatternMatch) -> Refusal | None:
    """Returns why the match's ``add`` of ``residual`` cannot be fused, None if it can."""
    residual, add = match["residual"], match["add"]
    if residual in match.nodes:
        return Refusal("the convolution's output is added to itself, not to a residual", add)
    before, after = shape_of(residual), shape_of(add)
    if before is not None and after is not None and not same_shape(before, after):
        return Refusal(f"the residual is broadcast from {list(before)} to {list(after)}", residual)
    if dtype_of(residual) != dtype_of(add):
        return Refusal(
            f"the residual is {dtype_of(residual)}, the sum is {dtype_of(add)}", residual
        )
    return None
