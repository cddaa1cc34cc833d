"""A graph-rewriting compiler that takes trained PyTorch models to their targets."""

from embedl_deploy.graph.provenance import blame
from embedl_deploy.rewriting import TransformationPlan, TransformationReport
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.transformation import (
    TransformationResult,
    apply_transformation_plan,
    get_transformation_plan,
    transform,
)

__all__ = [
    "TransformationPlan",
    "TransformationReport",
    "TransformationResult",
    "apply_transformation_plan",
    "blame",
    "get_transformation_plan",
    "report_of",
    "transform",
]
