"""Which modules of a pipeline take the time."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing import trace
from embedl_deploy.tuning.locating import Located, modules_of
from embedl_deploy.tuning.pipeline_data import Call, calls_of, run
from embedl_deploy.tuning.sample import Sample
from embedl_deploy.tuning.tuned_graph import aligned


@dataclass(frozen=True)
class ModuleInfo:
    """One module of a pipeline and what its calls took."""

    name: str
    path: str
    module: nn.Module = field(repr=False)
    depth: int
    """0: not inside another module of the pipeline."""

    execution_count: int
    total_execution_time: float
    """Seconds, submodules included."""

    execution_percentage: float
    """Share of the pipeline's time, from 0 to 1."""

    parameters: int
    graph_break: str | None = None
    """Why it cannot be traced whole; None: it can, or it was not tried."""

    @property
    def average_execution_time(self) -> float:
        """Seconds of a call."""
        return self.total_execution_time / self.execution_count if self.execution_count else 0.0


@dataclass(frozen=True)
class ModulesInfo:
    """What ``inspect`` found."""

    modules: tuple[ModuleInfo, ...]
    total_time: float
    """Seconds of all runs of the pipeline."""

    def get_modules(
        self, min_execution_percentage: float = 0.0, limit: int | None = None
    ) -> list[ModuleInfo]:
        """Returns the modules to wrap, the one that takes most first, none inside another.

        Args:
            min_execution_percentage: The smallest share of the pipeline's time, from 0 to 1.
            limit: The largest number of modules.

        Raises:
            ValueError: The share is no share.
        """
        if not 0 <= min_execution_percentage <= 1:
            raise ValueError(
                "min_execution_percentage is a share from 0 to 1, "
                f"got {min_execution_percentage}: 10 % is 0.1"
            )
        busy = [
            info
            for info in self.modules
            if info.execution_count and info.execution_percentage >= min_execution_percentage
        ]
        chosen: list[ModuleInfo] = []
        for info in sorted(busy, key=lambda info: info.depth):
            if not any(_holds(other.module, info.module) for other in chosen):
                chosen.append(info)
        chosen.sort(key=lambda info: -info.total_execution_time)
        return chosen[:limit]

    def describe(self) -> str:
        """Returns a table for people."""
        header = ("module", "class", "calls", "ms per call", "share", "parameters", "graph break")
        rows = [
            (
                info.name,
                type(info.module).__name__,
                str(info.execution_count),
                f"{1e3 * info.average_execution_time:.3f}",
                f"{100 * info.execution_percentage:.1f} %",
                f"{info.parameters:,}",
                info.graph_break or "",
            )
            for info in self.modules
        ]
        return "\n".join(aligned([header, *rows]))

    def to_dict(self) -> dict[str, object]:
        """Returns the table as JSON values."""
        return {
            "total_time": self.total_time,
            "modules": [
                {
                    "name": info.name,
                    "path": info.path,
                    "class": type(info.module).__name__,
                    "depth": info.depth,
                    "execution_count": info.execution_count,
                    "total_execution_time": info.total_execution_time,
                    "execution_percentage": info.execution_percentage,
                    "parameters": info.parameters,
                    "graph_break": info.graph_break,
                }
                for info in self.modules
            ],
        }


def inspect(
    obj: object,
    data: object,
    inference_function: Callable[..., object] | None = None,
    *,
    number_of_iterations: int = 3,
    warmup_iterations: int = 1,
    max_depth: int = 0,
    graph_breaks: bool = True,
) -> ModulesInfo:
    """Runs a pipeline and returns which of its modules take the time.

    Hooks are registered while it runs and removed after.

    Args:
        obj: A module, an object that holds modules, or a function that refers to them.
        data: What it is called with: a dict is keyword arguments, a tuple positional ones,
            anything else the one argument.
        inference_function: What to call instead of ``obj``.
        number_of_iterations: How often all of ``data`` is run and timed.
        warmup_iterations: How often it is run before.
        max_depth: How deep inside modules to look; 0: only modules not inside another one.
        graph_breaks: Whether to try which modules can be traced whole.

    Raises:
        ValueError: There is no module in ``obj``, it cannot be called, or is to be run less than
            once.
    """
    if number_of_iterations < 1 or warmup_iterations < 0:
        raise ValueError(
            "need number_of_iterations >= 1 and warmup_iterations >= 0, "
            f"got {number_of_iterations} and {warmup_iterations}"
        )
    located = [found for found in modules_of(obj) if found.depth <= max_depth]
    if not located:
        raise ValueError(f"there is no module in {type(obj).__name__}: pass what holds them")
    calls = calls_of(obj, data, inference_function)
    clocks = [_Clock(found) for found in located]
    handles = [handle for clock in clocks for handle in clock.hooks()]
    try:
        total = _timed(calls, clocks, number_of_iterations, warmup_iterations)
    finally:
        for handle in handles:
            handle.remove()
    infos = [clock.info(total) for clock in clocks]
    if graph_breaks:
        infos = [
            replace(info, graph_break=_graph_break(info.module, clock.sample))
            for info, clock in zip(infos, clocks, strict=True)
        ]
    return ModulesInfo(tuple(infos), total)


class _Clock:
    """Adds up what the calls of one module take; calls inside a call of its own count once."""

    def __init__(self, located: Located) -> None:
        self.located = located
        self.sample: Sample | None = None
        self.starts: list[float] = []
        self.count, self.seconds = 0, 0.0

    def hooks(self) -> Sequence[RemovableHandle]:
        module = self.located.module
        return (
            module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            module.register_forward_hook(self._after, always_call=True),
        )

    def reset(self) -> None:
        self.count, self.seconds = 0, 0.0

    def info(self, total: float) -> ModuleInfo:
        module = self.located.module
        return ModuleInfo(
            self.located.name,
            self.located.places[0].path,
            module,
            self.located.depth,
            self.count,
            self.seconds,
            self.seconds / total if total else 0.0,
            sum(parameter.numel() for parameter in module.parameters()),
        )

    def _before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> None:
        del module
        if self.sample is None:
            self.sample = Sample(args, kwargs).mapped(torch.clone)
        self.starts.append(time.perf_counter())

    def _after(self, *_: object) -> None:
        if self.starts:
            seconds = time.perf_counter() - self.starts.pop()
            self.count += 1
            self.seconds += 0.0 if self.starts else seconds


def _timed(
    calls: Sequence[Call], clocks: Sequence[_Clock], iterations: int, warmup_iterations: int
) -> float:
    for _ in range(warmup_iterations):
        run(calls)
    for clock in clocks:
        clock.reset()
    start = time.perf_counter()
    for _ in range(iterations):
        run(calls)
    return time.perf_counter() - start


def _graph_break(module: nn.Module, sample: Sample | None) -> str | None:
    if sample is None:
        return None
    try:
        trace(module, sample.args, sample.kwargs)
    except TracingError as error:
        return str(error).splitlines()[0]
    return None


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    inside = cast("Sequence[nn.Module]", list(outer.modules()))
    return any(module is inner for module in inside)
