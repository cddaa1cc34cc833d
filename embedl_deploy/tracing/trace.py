"""From a model to the graph that every stage works on."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor
from torch.fx import GraphModule, Node

from embedl_deploy.graph.traced_module import TracedModule, own_tensors
from embedl_deploy.tracing.bodies import lift_bodies
from embedl_deploy.tracing.clean import (
    name_sizes,
    remove_asserts,
    remove_dead_code,
    saturate_fills,
    views_as_reshapes,
)
from embedl_deploy.tracing.fold import fold_constants
from embedl_deploy.tracing.functional import make_functional
from embedl_deploy.tracing.inline import inline_blocks
from embedl_deploy.tracing.inputs import check_mapping
from embedl_deploy.tracing.lift import Lifted, lift
from embedl_deploy.tracing.limits import training_limits
from embedl_deploy.tracing.module_tree import build_module
from embedl_deploy.tracing.program import Program
from embedl_deploy.tracing.sources import Source, program_of
from embedl_deploy.tracing.vmap import write_out_vmap

Tracer = Literal["auto", "export", "fx"]


def trace(
    model: Source,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    dynamic_shapes: object | None = None,
    tracer: Tracer = "auto",
    copy: bool = False,
) -> GraphModule:
    """Returns ``model`` as a graph of modules and ATen calls; the model stays as it is.

    Args:
        model: A module, an ``ExportedProgram``, its ``.module()``, what ``torch.fx.symbolic_trace``
            returns, or a graph that this function made.
        args: Positional example inputs. May be left out where the program carries its own.
        kwargs: Keyword example inputs.
        dynamic_shapes: As in ``torch.export.export``.
        tracer: ``"export"``, ``"fx"``, or ``"auto"``: the first, and the second where it fails.
        copy: Whether the result gets tensors of its own instead of sharing the model's.

    Raises:
        TracingError: The model cannot be traced; the message names the line to change.
    """
    if tracer not in ("auto", "export", "fx"):
        raise ValueError(f"tracer must be 'auto', 'export' or 'fx', got {tracer!r}")
    check_mapping(kwargs or {})
    source = program_of(model, args, dict(kwargs or {}), dynamic_shapes, tracer)
    result = source if isinstance(source, TracedModule) else _module_of(source)
    if copy:
        own_tensors(result)
    return result


def _module_of(program: Program) -> TracedModule:
    inline_blocks(program)
    write_out_vmap(program)
    remove_asserts(program.graph)
    make_functional(program)
    views_as_reshapes(program.graph)
    name_sizes(program.graph)
    saturate_fills(program.graph)
    fold_constants(program)
    remove_dead_code(program.graph)
    lift_bodies(program)
    lifted = lift(program)
    remove_dead_code(program.graph)
    training = _is_training(program, lifted)
    module = build_module(program, lifted, training)
    program.record.example_shapes = _shapes(program.graph.find_nodes(op="placeholder"))
    program.record.notes.extend(training_limits(program.origin, lifted))
    module.meta["embedl_deploy"] = program.record
    if any(made.lifting.training and "running_mean" in made.tensors for made in lifted.values()):
        # Running such a graph moves norm statistics, which must not be the model's.
        own_tensors(module)
    return module


def _is_training(program: Program, lifted: Mapping[str, Lifted]) -> bool:
    if program.origin is None:
        return any(made.training for made in lifted.values())
    return program.origin.training


def _shapes(placeholders: list[Node]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for node in placeholders:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            shapes[node.name] = tuple(_hint(size) for size in value.shape)
    return shapes


def _hint(size: object) -> int:
    """Returns the example's value of a size that may be symbolic."""
    if isinstance(size, int):
        return size
    hint: object = getattr(getattr(size, "node", None), "hint", None)
    return hint if isinstance(hint, int) else -1
