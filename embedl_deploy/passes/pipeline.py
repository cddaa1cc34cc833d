"""The passes of a backend, in the order they run."""

from embedl_deploy.passes.cleanup import CleanupPass
from embedl_deploy.passes.conversion import ConversionPass
from embedl_deploy.passes.fusion import FusionPass
from embedl_deploy.passes.quantizer_insertion import QuantizationPass
from embedl_deploy.passes.smooth import SmoothPass
from embedl_deploy.rewriting import Pass
from embedl_deploy.rewriting.backend import Backend


def pipeline(backend: Backend) -> tuple[Pass, ...]:
    """Returns the passes for ``backend``; a tuple, so that users insert their own with ``+``."""
    return (
        ConversionPass(tuple(backend.conversion_patterns)),
        # Before smoothing: scales need the fused weights.
        FusionPass(tuple(backend.fusion_patterns)),
        SmoothPass(tuple(backend.smooth_patterns)),
        QuantizationPass(backend),
        CleanupPass(),
    )
