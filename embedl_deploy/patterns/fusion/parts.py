"""Reads the parts of a fused module off a match."""

from torch import nn

from embedl_deploy.modules.kinds import (
    BATCH_NORMS,
    CONVOLUTIONS,
    LINEARS,
    BatchNorm,
    Convolution,
    LinearLayer,
)
from embedl_deploy.rewriting import PatternMatch


def convolution_of(match: PatternMatch) -> Convolution:
    """Returns the module called by the node captured as ``conv``."""
    conv = match.module("conv", nn.Module)
    assert isinstance(conv, CONVOLUTIONS)
    return conv


def norm_of(match: PatternMatch) -> BatchNorm | None:
    """Returns the batch norm captured as ``norm``, None if there is none."""
    if "norm" not in match:
        return None
    norm = match.module("norm", nn.Module)
    assert isinstance(norm, BATCH_NORMS)
    return norm


def activation_of(match: PatternMatch) -> nn.Module | None:
    """Returns the module captured as ``activation``, None if there is none."""
    return match.module("activation", nn.Module) if "activation" in match else None


def linear_of(match: PatternMatch) -> LinearLayer:
    """Returns the module called by the node captured as ``linear``."""
    linear = match.module("linear", nn.Module)
    assert isinstance(linear, LINEARS)
    return linear
