"""A graph-rewriting compiler that takes trained PyTorch models to their targets."""

from embedl_deploy.deployment import load_lowered, lower, plan_lowering
from embedl_deploy.explanation import explain
from embedl_deploy.graph.provenance import blame
from embedl_deploy.lowering import LoweredModule
from embedl_deploy.rewriting import TransformationPlan, TransformationReport
from embedl_deploy.rewriting.bisection import bisect
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.transformation import (
    TransformationResult,
    apply_transformation_plan,
    get_transformation_plan,
    transform,
)
from embedl_deploy.tuning import Module, inspect, load, save, tune, wrap

__all__ = [
    "LoweredModule",
    "Module",
    "TransformationPlan",
    "TransformationReport",
    "TransformationResult",
    "apply_transformation_plan",
    "bisect",
    "blame",
    "explain",
    "get_transformation_plan",
    "inspect",
    "load",
    "load_lowered",
    "lower",
    "plan_lowering",
    "report_of",
    "save",
    "transform",
    "tune",
    "wrap",
]
