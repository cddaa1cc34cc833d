"""Says why a pattern fired, was declined, or did not fit in a model."""

from collections.abc import Mapping
from typing import cast

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.rewriting import Pattern
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.explain import Explanation, explain_graph
from embedl_deploy.tracing import trace

__all__ = ["Explanation", "explain"]


def explain(
    model_or_graph: nn.Module | ExportedProgram,
    pattern: type[Pattern] | Pattern,
    node: Node | str | None = None,
    *,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    backend: str | Backend | None = None,
) -> Explanation:
    """Returns why ``pattern`` fired, was declined, or did not fit; print it.

    For a pattern that did not fire it ranks the near misses: the first node that differs, what
    the pattern asks for, what stands there, and the change that would make it fit.

    Args:
        model_or_graph: A model, or a graph from any stage; neither is changed.
        pattern: The rule in question.
        node: Only places that involve this node, or the node of this name.
        args: Example inputs, for a model that is not traced yet.
        kwargs: Example keyword inputs.
        backend: The backend whose patterns it runs among: the one recorded in the graph, else
            the active one; if there is none the pattern is looked at alone.

    Raises:
        TracingError: The model cannot be traced.
        ValueError: There is no such node, or no such backend.
    """
    traced = isinstance(model_or_graph, GraphModule) and has_record(model_or_graph)
    if traced:
        graph_module = cast("GraphModule", model_or_graph)
    else:
        graph_module = trace(model_or_graph, args, kwargs)
    found = _backend(backend, record_of(graph_module).backend)
    others = () if found is None else (*found.conversion_patterns, *found.fusion_patterns)
    return explain_graph(graph_module, pattern, node, others)


def _backend(backend: str | Backend | None, recorded: str | None) -> Backend | None:
    try:
        return resolve_backend(backend, recorded)
    except RuntimeError:
        # No backend is active: the pattern is looked at alone.
        return None
