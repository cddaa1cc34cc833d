"""Rules that move outliers from activations into weights."""

from embedl_deploy.patterns.smooth.move_outliers_into_linears import (
    MoveOutliersIntoLinears,
    linear_that_reads,
)

__all__ = ["MoveOutliersIntoLinears", "linear_that_reads"]
