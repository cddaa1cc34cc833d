"""Rules that move outliers from activations into weights."""

from embedl_deploy.patterns.smooth.move_outliers_into_linears import MoveOutliersIntoLinears
from embedl_deploy.patterns.smooth.scale_before_linears import ScaleBeforeLinears

__all__ = ["MoveOutliersIntoLinears", "ScaleBeforeLinears"]
