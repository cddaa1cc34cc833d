"""The passes that a model goes through, and how to run them or passes of one's own."""

from embedl_deploy.passes.cleanup import CleanupPass
from embedl_deploy.passes.conversion import ConversionPass
from embedl_deploy.passes.fusion import FusionPass
from embedl_deploy.passes.pipeline import pipeline
from embedl_deploy.passes.quantizer_insertion import QuantizationPass
from embedl_deploy.passes.smooth import SmoothPass
from embedl_deploy.rewriting import Pass, PassRecord, run_passes

__all__ = [
    "CleanupPass",
    "ConversionPass",
    "FusionPass",
    "Pass",
    "PassRecord",
    "QuantizationPass",
    "SmoothPass",
    "pipeline",
    "run_passes",
]
