"""The kinds of model that can be traced, and how each becomes a program."""

from pathlib import Path
from typing import cast

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen

from embedl_deploy.errors import TracingError
from embedl_deploy.graph.record import has_record
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.tracing.codegen import StructuredCodeGen
from embedl_deploy.tracing.export import export_model
from embedl_deploy.tracing.program import Program, program_of_export, program_of_graph_module
from embedl_deploy.tracing.ranges import range_constraints

Source = nn.Module | ExportedProgram


def program_of(
    model: Source,
    args: tuple[object, ...] | None,
    kwargs: dict[str, object],
    dynamic_shapes: object | None,
    tracer: str,
) -> Program | TracedModule:
    """Returns the flat program of ``model``, or a copy of a graph that is traced already.

    Raises:
        TracingError: ``model`` is of no kind that can be traced, or it cannot be.
    """
    if isinstance(model, ExportedProgram):
        program = program_of_export(model, None)
        program.record.range_constraints = range_constraints(program.graph)
        return program
    if not isinstance(model, nn.Module):
        raise TracingError(
            "model must be an nn.Module or an ExportedProgram, got "
            f"{type(model).__name__}; wrap a function in a module whose forward calls it"
        )
    if isinstance(model, GraphModule) and has_record(model):
        return structural_copy(model)
    if isinstance(model, GraphModule) and _is_exported(model):
        program = program_of_graph_module(model)
    else:
        program = _traced(model, args, kwargs, dynamic_shapes, tracer)
    program.record.range_constraints = range_constraints(program.graph)
    return program


def _traced(
    model: nn.Module,
    args: tuple[object, ...] | None,
    kwargs: dict[str, object],
    dynamic_shapes: object | None,
    tracer: str,
) -> Program:
    if args is None and not kwargs:
        raise TracingError(
            f"tracing {type(model).__name__} needs example inputs: pass args=(x, ...) or kwargs"
        )
    exported = export_model(model, args if args is not None else (), kwargs, dynamic_shapes)
    program = program_of_export(exported.program, model)
    if exported.inputs is not None or exported.outputs is not None:
        info = cast("_PyTreeCodeGen", program.graph._codegen).pytree_info
        program.graph.set_codegen(StructuredCodeGen(info, exported.outputs))
    program.record.dynamic_shapes = dynamic_shapes
    return program


def _is_exported(graph_module: GraphModule) -> bool:
    """Tells whether ``graph_module`` is what ``ExportedProgram.module()`` returns."""
    if not isinstance(graph_module.graph._codegen, _PyTreeCodeGen):
        return False
    calls = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    return all(str(node.target) == "_guards_fn" for node in calls)


def load_program(path: str | Path) -> ExportedProgram:
    """Loads a ``.pt2`` file."""
    import torch

    return torch.export.load(path)
