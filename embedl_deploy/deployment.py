"""Lowers a model to the engines of a backend, saves the result and loads it again."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.engines.engine import Engine
from embedl_deploy.engines.program import flat_program
from embedl_deploy.errors import CheckpointError, MissingDependencyError, PreconditionError
from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.lowering import (
    BuildSettings,
    EngineChoice,
    LoweredModule,
    LoweringPlan,
    LoweringRequest,
    Progress,
    known_engines,
    lower_graph,
    plan_graph,
)
from embedl_deploy.lowering import checkpoint as checkpoint_file
from embedl_deploy.lowering.assembly import Assembly
from embedl_deploy.lowering.checkpoint import SavedEngine
from embedl_deploy.lowering.engine_choice import engine_from
from embedl_deploy.lowering.rebuilding import assignment_of, rebuild
from embedl_deploy.lowering.settings import Terms
from embedl_deploy.passes.integer_conversion import convert
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.tracing import trace

Model = nn.Module | ExportedProgram

Engines = EngineChoice | Sequence[EngineChoice] | Mapping[str, EngineChoice]
"""One engine, several in order of preference, or by pattern of module path; ``"*"`` is the rest."""


def lower(
    model: Model,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
    engines: Engines | None = None,
    choose: Literal["first", "measure"] = "first",
    *,
    backend: str | Backend | None = None,
    dynamic_shapes: object | None = None,
    allow_simulated: bool = False,
    fallback: bool = True,
    cache_dir: str | Path | None = None,
    min_nodes: int = 1,
    atomic: Sequence[Sequence[str]] = (),
    tolerance: float | None = None,
    time_budget_s: float | None = None,
    builds: int | Executor = 1,
    progress: Progress | None = None,
) -> LoweredModule:
    """Returns ``model`` cut into subgraphs, each built by an engine.

    Takes a model at any stage: untraced, transformed, or quantized (then quantizers become
    integer weights and Q/DQ pairs first). The model itself is not changed.

    Args:
        model: A module in eval mode, a result of an earlier stage, or an exported program.
        args: Example inputs; engines are built and checked with them.
        kwargs: Keyword example inputs.
        engines: Names, classes, configs or engines, the preferred one first; or by pattern of
            module path, ``{"encoder.*": "torchao", "*": "inductor"}``. None: the backend's.
        choose: ``"first"``: the first engine that builds and computes the right thing;
            ``"measure"``: the fastest of all that do, timed in turns, subgraph by subgraph.
        backend: Whose engines; None: the one that the graph was rewritten for, else the active.
        dynamic_shapes: As in ``torch.export``, for a model that is not traced yet.
        allow_simulated: Whether quantize and dequantize may run as float arithmetic.
        fallback: Whether a subgraph runs eager when its engine cannot take an input that the
            graph's declared ranges admit; otherwise that is a ``LoweringError``, and the file that
            ``save`` writes is smaller: it holds no weights that only engines read.
        cache_dir: Where built engines, and with ``"measure"`` the choices between them, are kept
            by content: graph, weights, inputs, configuration, versions and hardware. A second run
            that finds all of it builds nothing. Engines are code: keep others from writing there.
        min_nodes: The fewest nodes worth an engine's call.
        atomic: Groups of node names that no cut may divide.
        tolerance: Largest relative error of an engine's outputs against the graph's; None: 0.1,
            and 0.25 where the graph is quantized.
        time_budget_s: With ``"measure"``: when to stop building further candidates.
        builds: How many engines are built at once, in processes of their own, or the executor
            that runs the builds: of threads, processes, or a cluster that sees the same files
            under ``cache_dir``. Engines that compile just in time are built here all the same.
        progress: Called with one line at the start of each long step.

    Raises:
        TracingError: The model cannot be traced.
        PreconditionError: It is in training mode, or its quantizers are not calibrated.
        LoweringError: The examples do not fit the graph, or quantization would be simulated.
        ValueError: An engine or backend is unknown, or a setting is outside its range.
        OutputPathError: ``cache_dir`` is no folder and cannot be made one.
        MissingDependencyError: An engine in ``engines`` needs a library that is not installed;
            the backend's own engines are left out then, with a note in the report.
    """
    settings = BuildSettings(
        choose=choose,
        tolerance=tolerance,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        time_budget_s=time_budget_s,
        builds=builds,
        progress=progress,
    )
    request = _request(
        _Source(model, args, kwargs or {}, dynamic_shapes), engines, backend, min_nodes, atomic
    )
    return lower_graph(
        replace(request, build=settings, fallback=fallback, allow_simulated=allow_simulated)
    )


def plan_lowering(
    model: Model,
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None = None,
    engines: Engines | None = None,
    *,
    backend: str | Backend | None = None,
    dynamic_shapes: object | None = None,
    min_nodes: int = 1,
    atomic: Sequence[Sequence[str]] = (),
) -> LoweringPlan:
    """Returns how ``lower`` would cut ``model``, what crosses the cuts, and every refusal.

    Nothing is built. The arguments are those of ``lower``.
    """
    source = _Source(model, args, kwargs or {}, dynamic_shapes)
    return plan_graph(_request(source, engines, backend, min_nodes, atomic))


def load_lowered(
    path: str | Path,
    *,
    trust_engines: bool = True,
    engines: Sequence[type[Engine]] = (),
    classes: Sequence[type] = (),
    progress: Progress | None = None,
) -> LoweredModule:
    """Returns a model that ``LoweredModule.save`` wrote.

    Nothing is unpickled, and nothing is written outside a folder of its own. Sums detect damage,
    not malice: engine files are code.

    Args:
        path: The file.
        trust_engines: Whether to load the engines in the file. If not, they are built anew from
            its graph and weights, also on another machine or version, on the terms that it was
            lowered on: ``fallback``, ``tolerance`` and ``allow_simulated`` (True in files that do
            not say).
        engines: Engine classes beyond those of this package.
        classes: Classes of the model's inputs and outputs that pytree does not know.
        progress: Called with one line at the start of each build.

    Raises:
        CheckpointError: The file is damaged, unsafe, or made for another version or machine.
        LoweringError: Engines that are built anew would leave quantization to float arithmetic.
    """
    known = {**known_engines(), **{found.__name__: found for found in engines}}
    again = None if trust_engines else partial(_built_anew, known, progress)
    return checkpoint_file.load_lowered(Path(path), known, classes=classes, rebuild=again)


@dataclass(frozen=True)
class _Source:
    model: Model
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    dynamic_shapes: object | None


def _request(
    source: _Source,
    engines: Engines | None,
    backend: str | Backend | None,
    min_nodes: int,
    atomic: Sequence[Sequence[str]],
) -> LoweringRequest:
    graph = _traced(source)
    general, pins, left_out = _engine_order(engines, backend, record_of(graph).backend)
    return LoweringRequest(
        graph_module=convert(graph),
        args=source.args,
        kwargs=source.kwargs,
        engines=general,
        pins=pins,
        min_nodes=min_nodes,
        atomic=atomic,
        python_signature=record_of(graph).signature,
        notes=(*record_of(graph).notes, *left_out),
    )


def _traced(source: _Source) -> GraphModule:
    model = source.model
    if isinstance(model, nn.Module) and model.training:
        raise PreconditionError(
            "lowering needs a model in eval mode, got one in training mode: call model.eval()"
        )
    if isinstance(model, GraphModule) and has_record(model):
        return model
    return trace(model, source.args, source.kwargs, dynamic_shapes=source.dynamic_shapes)


def _engine_order(
    engines: Engines | None, backend: str | Backend | None, recorded: str | None
) -> tuple[list[EngineChoice], dict[str, EngineChoice], list[str]]:
    """Returns the engines in order of preference, those pinned to patterns of paths, and notes."""
    pins: dict[str, EngineChoice] = {}
    if isinstance(engines, Mapping):
        pins = {pattern: _installed(choice) for pattern, choice in engines.items()}
        engines = pins.pop("*", None)
    if engines is None:
        order, notes = _backend_engines(backend, recorded)
        return order, pins, notes
    if isinstance(engines, str) or not isinstance(engines, Sequence):
        engines = [engines]
    return [_installed(choice) for choice in engines], pins, []


def _installed(choice: EngineChoice) -> Engine:
    """Returns the engine that was asked for by name; its libraries must be there."""
    engine = engine_from(choice)
    missing = engine.missing_libraries()
    if missing:
        raise MissingDependencyError(
            f"{type(engine).__name__} needs {', '.join(missing)}, which is not installed here: "
            f"pip install {' '.join(missing)}, or leave {engine.name!r} out of engines"
        )
    return engine


def _backend_engines(
    backend: str | Backend | None, recorded: str | None
) -> tuple[list[EngineChoice], list[str]]:
    """Returns the engines of a backend whose libraries are here, and a note on each other one."""
    order: list[EngineChoice] = []
    notes: list[str] = []
    for choice in resolve_backend(backend, recorded).engines:
        engine = engine_from(choice)
        missing = engine.missing_libraries()
        if missing:
            notes.append(
                f"{type(engine).__name__} was left out: {', '.join(missing)} is not installed"
            )
        else:
            order.append(engine)
    return order, notes


def _built_anew(
    known: Mapping[str, type[Engine]],
    progress: Progress | None,
    assembly: Assembly,
    saved: Sequence[SavedEngine],
    terms: Terms,
) -> LoweredModule:
    """Lowers a loaded graph with engines of the saved classes and settings, on the same terms."""
    prototypes: dict[str, Engine] = {}
    for engine in saved:
        engine_class = known.get(engine.class_name)
        if engine_class is None:
            raise CheckpointError(
                f"{engine.subgraph} needs engine {engine.class_name!r}, which is not known here: "
                "give its class to load_lowered(..., engines=[...])"
            )
        config = engine_class.config_class.from_dict(engine.config)
        prototypes.setdefault(engine.label, engine_class(config))

    labels = {engine.subgraph: engine.label for engine in saved}

    def again(graph: GraphModule, args: tuple[object, ...], shapes: object) -> LoweredModule:
        return lower_graph(
            LoweringRequest(
                graph_module=flat_program(graph, args, shapes),
                args=args,
                kwargs={},
                engines=list(prototypes.values()),
                assignment=assignment_of(assembly, prototypes, labels),
                build=BuildSettings(tolerance=terms.tolerance, progress=progress),
                fallback=terms.fallback,
                allow_simulated=terms.allow_simulated,
            )
        )

    return rebuild(assembly.core, again)
