"""Lowering: a graph is cut into convex subgraphs, each built by an engine, and stitched."""

from embedl_deploy.lowering.engine_choice import EngineChoice, known_engines
from embedl_deploy.lowering.lowered_module import LoweredModule
from embedl_deploy.lowering.partitioning import Partition, Subgraph, partition
from embedl_deploy.lowering.pipeline import LoweringRequest, lower_graph, plan_graph
from embedl_deploy.lowering.report import LoweringPlan, LoweringReport, NodeRefusal
from embedl_deploy.lowering.settings import BuildSettings, Choose, Progress

__all__ = [
    "BuildSettings",
    "Choose",
    "EngineChoice",
    "LoweredModule",
    "LoweringPlan",
    "LoweringReport",
    "LoweringRequest",
    "NodeRefusal",
    "Partition",
    "Progress",
    "Subgraph",
    "known_engines",
    "lower_graph",
    "partition",
    "plan_graph",
]
