"""Wraps and tunes the modules of a pipeline object."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from embedl_deploy.lowering.build_errors import BUILD_ERRORS
from embedl_deploy.tuning.dimensions import DeclaredShapes
from embedl_deploy.tuning.inspection import ModuleInfo
from embedl_deploy.tuning.locating import Located, modules_of, wrapped_in
from embedl_deploy.tuning.module import Module
from embedl_deploy.tuning.pipeline_data import calls_of, run
from embedl_deploy.tuning.states import ModuleState
from embedl_deploy.tuning.strategies import Strategies
from embedl_deploy.tuning.strategy import TuneStrategy
from embedl_deploy.tuning.tuned_graph import TuningReport


@dataclass(frozen=True)
class PipelineReport:
    """What tuning the modules of a pipeline came to."""

    modules: tuple[TuningReport, ...]

    def describe(self) -> str:
        """Returns a table per module for people."""
        return "\n".join(report.describe() for report in self.modules)

    def to_dict(self) -> dict[str, object]:
        """Returns the report as JSON values."""
        return {"modules": [report.to_dict() for report in self.modules]}


def wrap(
    obj: object,
    modules: Sequence[ModuleInfo | nn.Module] | None = None,
    strategy: TuneStrategy | None = None,
    strategies: Mapping[str, Strategies] | None = None,
    dynamic_shapes: Mapping[str, DeclaredShapes] | None = None,
) -> object:
    """Puts a ``Module`` in place of modules of a pipeline, everywhere it refers to them.

    Args:
        obj: A module, an object that holds modules, or a function that refers to them.
        modules: Which, as ``inspect`` gives them; None: all that are not inside another module.
        strategy: How they are tuned.
        strategies: By name of a module, its strategies, one per graph.
        dynamic_shapes: By name of a module, the sizes that may vary.

    Returns:
        ``obj``, changed in place; its wrapper if it is itself one of the modules.

    Raises:
        ValueError: There is none, a module is not in ``obj``, is inside another one of them, or
            cannot be replaced where it is.
    """
    located = modules_of(obj)
    if not located:
        raise ValueError(f"there is no module in {type(obj).__name__}: pass what holds them")
    chosen = _chosen(located, modules)
    _require_names([found.name for found in chosen], strategies, dynamic_shapes)
    result = obj
    wrappers = [
        Module(
            found.module,
            found.name,
            None if found.name in (strategies or {}) else strategy,
            (strategies or {}).get(found.name),
            (dynamic_shapes or {}).get(found.name),
        )
        for found in chosen
    ]
    fixed = [
        place for found in chosen for place in found.places if _is_fixed(place.kind, place.path)
    ]
    if fixed:
        raise ValueError(
            f"{fixed[0].path} is in a tuple or an argument of a partial, which cannot be changed: "
            "put the module into a list or an attribute"
        )
    for found, wrapper in zip(chosen, wrappers, strict=True):
        result = placed(result, found, wrapper)
    return result


def placed(pipeline: object, located: Located, wrapper: Module) -> object:
    """Puts ``wrapper`` wherever the module is; returns it if the module is the pipeline."""
    for place in located.places:
        if not place.path:
            return wrapper
        place.put(wrapper)
    return pipeline


def tune(
    obj: object,
    data: object,
    inference_function: Callable[..., object] | None = None,
    *,
    device: torch.device | str | None = None,
    strategy: TuneStrategy | None = None,
    dry_run: bool = False,
    cache_dir: str | Path | None = None,
) -> PipelineReport:
    """Runs a pipeline, which records its wrapped modules, and tunes each of them.

    A module that fails to be tuned runs eager and its report says why; the others go on.

    Args:
        obj: What ``wrap`` returned.
        data: As for ``inspect``.
        inference_function: What to call instead of ``obj``.
        device: As for ``Module.tune``.
        strategy: For modules that were given none.
        dry_run: Whether to only list what would be tried.
        cache_dir: Where engines may keep what they compiled.

    Raises:
        ValueError: Nothing in ``obj`` is wrapped, or there is no data.
    """
    wrapped = wrapped_in(obj)
    if not wrapped:
        raise ValueError(
            "nothing is wrapped: call wrap(obj, modules) first, and tune what it returns"
        )
    run(calls_of(obj, data, inference_function))
    folder = None if cache_dir is None else Path(cache_dir)
    reports: list[TuningReport] = []
    for module, _ in wrapped:
        try:
            reports.append(_tuned(module, device, strategy, dry_run, folder))
        except BUILD_ERRORS as error:
            reports.append(TuningReport(module.name, (), (f"stays eager: {error}",)))
            if not dry_run:
                module.enable_passthrough()
    return PipelineReport(tuple(reports))


_NEVER_CALLED = (
    "stays eager: this data never calls it; where only methods of its own do, as generate() does, "
    "wrap the modules inside it"
)


def _tuned(
    module: Module,
    device: torch.device | str | None,
    strategy: TuneStrategy | None,
    dry_run: bool,
    folder: Path | None,
) -> TuningReport:
    if module.state is ModuleState.TUNED:
        note = "was tuned before and stays so; enable_recording(force=True) lets it be tuned anew"
        return TuningReport(module.name, module.tuning_report.graphs, (note,))
    if module.state is not ModuleState.RECORDING or not module.graph_specs:
        return TuningReport(module.name, (), (_NEVER_CALLED,))
    return module.tune(device, strategy, dry_run, cache_dir=folder)


def _chosen(
    located: Sequence[Located], modules: Sequence[ModuleInfo | nn.Module] | None
) -> list[Located]:
    if modules is None:
        return [f for f in located if f.depth == 0 and not isinstance(f.module, Module)]
    by_module = {id(found.module): found for found in located}
    chosen: list[Located] = []
    for wanted in modules:
        module = wanted.module if isinstance(wanted, ModuleInfo) else wanted
        found = by_module.get(id(module))
        if found is None:
            raise ValueError(f"there is no such {type(module).__name__} in the object to wrap")
        chosen.append(found)
    inner = {id(m): found for found in chosen for m in list(found.module.modules())[1:]}
    for found in chosen:
        outer = inner.get(id(found.module))
        if outer is not None:
            raise ValueError(f"{found.name} is inside {outer.name}: wrap one of the two")
    return chosen


def _is_fixed(kind: str, path: str) -> bool:
    return kind == "fixed" and bool(path)


def _require_names(names: Sequence[str], *tables: Mapping[str, object] | None) -> None:
    for table in tables:
        unknown = [name for name in table or {} if name not in names]
        if unknown:
            raise ValueError(f"no module is called {unknown[0]!r}; there are {', '.join(names)}")
