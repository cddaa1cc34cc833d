"""Wraps modules and pipelines, records their calls, and runs them by what was measured best."""

from embedl_deploy.tuning.candidates import Candidate, Tolerance
from embedl_deploy.tuning.checkpoint import load, save
from embedl_deploy.tuning.dimensions import BatchDim, DynamicDim
from embedl_deploy.tuning.graph_spec import GraphSpec
from embedl_deploy.tuning.inspection import ModuleInfo, ModulesInfo, inspect
from embedl_deploy.tuning.max_throughput import MaxThroughputStrategy
from embedl_deploy.tuning.measured_strategies import (
    FirstWinsStrategy,
    LatencyBudgetStrategy,
    MinLatencyStrategy,
    OneBackendStrategy,
)
from embedl_deploy.tuning.module import Module
from embedl_deploy.tuning.pipeline import PipelineReport, tune, wrap
from embedl_deploy.tuning.sample import Sample
from embedl_deploy.tuning.states import ModuleState
from embedl_deploy.tuning.strategy import TuneStrategy
from embedl_deploy.tuning.tuned_graph import (
    CandidateReport,
    Latency,
    OutputError,
    TunedGraph,
    TuningReport,
)

__all__ = [
    "BatchDim",
    "Candidate",
    "CandidateReport",
    "DynamicDim",
    "FirstWinsStrategy",
    "GraphSpec",
    "Latency",
    "LatencyBudgetStrategy",
    "MaxThroughputStrategy",
    "MinLatencyStrategy",
    "Module",
    "ModuleInfo",
    "ModuleState",
    "ModulesInfo",
    "OneBackendStrategy",
    "OutputError",
    "PipelineReport",
    "Sample",
    "Tolerance",
    "TuneStrategy",
    "TunedGraph",
    "TuningReport",
    "inspect",
    "load",
    "save",
    "tune",
    "wrap",
]
