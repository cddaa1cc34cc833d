# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""The kinds of model that can be traced, and how each becomes a program."""

from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen

from embedl_deploy.errors import ModelSourceError, TracingError
from embedl_deploy.graph.record import has_record
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.tracing.admission import check_model, check_values
from embedl_deploy.tracing.codegen import complete_codegen
from embedl_deploy.tracing.export import Exported, export_model
from embedl_deploy.tracing.inputs import check_inputs, check_program_inputs
from embedl_deploy.tracing.program import Program, program_of_export, program_of_graph_module
from embedl_deploy.tracing.quiet import quiet_torch
from embedl_deploy.tracing.ranges import range_constraints
from embedl_deploy.tracing.symbolic import symbolic_model

Source = nn.Module | ExportedProgram


def program_of(
    model: object,
    args: tuple[object, ...] | None,
    kwargs: dict[str, object],
    dynamic_shapes: object | None,
    tracer: str,
) -> Program | TracedModule:
    """Returns the flat program of ``model``, or a copy of a graph that is traced already.

    Raises:
        TracingError: ``model`` is of no kind that can be traced, or it cannot be.
    """
    if isinstance(model, GraphModule) and has_record(model):
        return structural_copy(model)
    if isinstance(model, ExportedProgram):
        program = program_of_export(model, None)
        _check_given(program, args, kwargs, dynamic_shapes)
    elif isinstance(model, GraphModule) and _is_exported(model):
        program = program_of_graph_module(model)
        _check_given(program, args, kwargs, dynamic_shapes)
    else:
        program = _traced(model, args, kwargs, dynamic_shapes, tracer)
    declared = program.record.range_constraints
    program.record.range_constraints = {**range_constraints(program.graph), **declared}
    return program


def load_program(path: str | Path) -> ExportedProgram:
    """Loads a ``.pt2`` file that ``torch.export.save`` wrote.

    Raises:
        ModelSourceError: There is no such file, or it is cut short or of another kind.
    """
    file = Path(path)
    if not file.is_file():
        raise ModelSourceError(f"there is no file {file}; expected what torch.export.save writes")
    try:
        with quiet_torch():
            return torch.export.load(file)
    except Exception as error:
        raise ModelSourceError(
            f"{file} ({file.stat().st_size} bytes) cannot be read as an exported program: it is "
            "cut short, damaged, or was not written by torch.export.save "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error


def _check_given(
    program: Program,
    args: tuple[object, ...] | None,
    kwargs: dict[str, object],
    dynamic_shapes: object | None,
) -> None:
    if dynamic_shapes is not None:
        raise TracingError(
            "an exported program has its dynamic shapes already: give dynamic_shapes to "
            "torch.export.export instead"
        )
    if args is not None or kwargs:
        check_program_inputs(program, () if args is None else args, kwargs)
    complete_codegen(program.graph, None)


def _traced(
    model: object,
    args: tuple[object, ...] | None,
    kwargs: dict[str, object],
    dynamic_shapes: object | None,
    tracer: str,
) -> Program:
    if not isinstance(model, nn.Module):
        raise TracingError(
            "model must be an nn.Module or an ExportedProgram, got "
            f"{type(model).__name__}; wrap a function in a module whose forward calls it"
        )
    if args is None and not kwargs:
        raise TracingError(
            f"tracing {type(model).__name__} needs example inputs: pass args=(x, ...) or kwargs"
        )
    given = () if args is None else args
    check_model(model)
    check_inputs(model, given, kwargs)
    check_values(model, given, kwargs)
    notes: list[str] = []
    if tracer == "fx":
        used, exported = "fx", _by_fx(model, given, kwargs, dynamic_shapes)
    else:
        used, exported = "export", None
        try:
            exported = export_model(model, model, given, kwargs, dynamic_shapes)
        except TracingError as error:
            if tracer == "export":
                raise
            exported = _fallback(error, model, given, kwargs, dynamic_shapes)
            used = "fx"
            notes.append(f"torch.export refused the model, torch.fx traced it instead: {error}")
    program = program_of_export(exported.program, model)
    complete_codegen(program.graph, exported.outputs, exported.inputs is not None)
    program.record.tracer = used
    program.record.notes.extend(notes)
    program.record.dynamic_shapes = dynamic_shapes
    return program


def _by_fx(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    dynamic_shapes: object | None,
) -> Exported:
    return export_model(model, symbolic_model(model, args, kwargs), args, kwargs, dynamic_shapes)


def _fallback(
    error: TracingError,
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    dynamic_shapes: object | None,
) -> Exported:
    try:
        return _by_fx(model, args, kwargs, dynamic_shapes)
    except TracingError as second:
        error.add_note(f"torch.fx cannot trace it either: {second}")
        raise error from error.__cause__


def _is_exported(graph_module: GraphModule) -> bool:
    """Tells whether ``graph_module`` is what ``ExportedProgram.module()`` returns."""
    if not isinstance(graph_module.graph._codegen, _PyTreeCodeGen):
        return False
    calls = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    return all(str(node.target) == "_guards_fn" for node in calls)
