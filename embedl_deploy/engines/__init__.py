"""Engines: what builds a subgraph and runs it. Each optional library is imported in one file."""

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.eager import EagerEngine, EagerEngineConfig
from embedl_deploy.engines.engine import Engine, EngineState

__all__ = ["EagerEngine", "EagerEngineConfig", "Engine", "EngineConfig", "EngineState"]
