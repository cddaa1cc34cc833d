"""Turns a model into the graph that every stage works on."""

from embedl_deploy.tracing.sources import load_program
from embedl_deploy.tracing.trace import trace

__all__ = ["load_program", "trace"]
