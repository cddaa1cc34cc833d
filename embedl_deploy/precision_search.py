"""Chooses precisions under a budget: which groups of a model to quantize."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.deployment import Engines, lower
from embedl_deploy.errors import CalibrationError
from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.lowering import LoweredModule
from embedl_deploy.lowering.measure import time_interleaved
from embedl_deploy.passes.calibration import ForwardLoop, run_forward_loop
from embedl_deploy.passes.precision_check import Metric, Progress, SearchSteps
from embedl_deploy.passes.precision_costs import CostModel, Measure, predicted_savings
from embedl_deploy.passes.precision_search import PrecisionSearch
from embedl_deploy.passes.precision_sensitivity import Method
from embedl_deploy.passes.quantization import own_modules
from embedl_deploy.passes.quantized_graph import quantized_graph
from embedl_deploy.passes.skip_rules import named_rules
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.search_result import Budget, BudgetKind, PrecisionSearchResult
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.transformation import transform

_DEFAULT = QuantConfig()
_SECONDS = 5.0


def search_precision(
    model: nn.Module | ExportedProgram,
    data: ForwardLoop,
    metric: Metric,
    *,
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    max_bytes: float | None = None,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    config: QuantConfig = _DEFAULT,
    costs: CostModel | Literal["measured"] | None = None,
    measure: Measure | None = None,
    sensitivity: Method = "output",
    state: str | Path | None = None,
    backend: str | Backend | None = None,
    progress: Progress | None = None,
) -> PrecisionSearchResult:
    """Returns which groups of ``model`` to quantize so that one budget is kept, and why.

    A group is a fused layer with its operands. One pass over the data measures the error that
    each alone causes at the output; errors and savings add up, and a knapsack gives every choice
    that no other beats in both. With ``max_drop`` the one that saves most is wanted, with
    ``max_latency_ms`` and ``max_bytes`` the one with the least error. What is chosen is then
    quantized and checked, and where it does not keep to the budget the next ones are, so that
    the budget holds of what was measured and not only of what was predicted.

    Args:
        model: As for ``quantize``; not changed.
        data: As ``forward_loop`` of ``quantize``, gone through several times.
        metric: How good the model it is given is; higher is better.
        max_drop: How much of the metric may be lost.
        max_latency_ms: Of one call of the lowered model on the example inputs.
        max_bytes: Of the parameters as they are stored.
        args: Example inputs, as for ``quantize``; the first of the data if None.
        kwargs: Example keyword inputs.
        config: What quantizing a group means; what it skips stays in float.
        costs: What quantizing each group saves: a function; ``"measured"``, for which the model
            is built and timed twice per kind of group, and at the end up to twelve choices are;
            None for what the backend's table of costs predicts of int8 over bfloat16.
        measure: Times graphs; ``LoweredLatency`` on the example inputs if None.
        sensitivity: ``"output"`` runs the model once per group and batch; ``"gradient"``
            estimates the same in ten passes per batch, to first order.
        state: A file that keeps what was found; a search that was interrupted goes on from it,
            given the same data in the same order.
        backend: As for ``quantize``.
        progress: Told what is being done.

    Raises:
        ValueError: Not exactly one budget was given, or one that makes no sense.
        SearchError: No choice keeps to the budget; the message says what came closest.
        CalibrationError: There is no data, or it is not usable.
        CheckpointError: ``state`` belongs to another search; the message says in what.
    """
    limits = {"max_drop": max_drop, "max_latency_ms": max_latency_ms, "max_bytes": max_bytes}
    budget = _budget(limits)
    data = _usable(data)
    if args is None and kwargs is None:
        args, kwargs = _first_inputs(model, data)
    chosen = _backend_for(model, backend)
    is_rewritten = isinstance(model, GraphModule) and has_record(model)
    graph = model if is_rewritten else transform(model, args, kwargs, backend=chosen).model
    assert isinstance(graph, GraphModule)
    if isinstance(model, nn.Module):
        config = replace(config, skip=named_rules(config.skip, model))

    def build(wanted: QuantConfig) -> GraphModule:
        return quantized_graph(own_modules(graph), wanted, data, chosen, freeze_weights=True)

    steps = SearchSteps(
        build,
        metric,
        predicted_savings if costs is None else costs,
        measure or LoweredLatency(args or (), kwargs),
        progress or _silent,
    )
    path = None if state is None else Path(state)
    return PrecisionSearch(graph, data, config, budget, steps, sensitivity, path).run()


class LoweredLatency:
    """Lowers graphs and times them on example inputs, in blocks of calls whose order rotates."""

    def __init__(
        self,
        args: tuple[object, ...],
        kwargs: Mapping[str, object] | None = None,
        engines: Engines | None = None,
        *,
        tolerance: float | None = None,
        seconds: float = _SECONDS,
    ) -> None:
        """Keeps what ``lower`` is to be given.

        Args:
            args: Example inputs.
            kwargs: Keyword example inputs.
            engines: As for ``lower``.
            tolerance: As for ``lower``.
            seconds: How long to measure each time.
        """
        self.args, self.kwargs, self.engines = args, dict(kwargs or {}), engines
        self.tolerance, self.seconds = tolerance, seconds
        self._last: dict[int, tuple[GraphModule, LoweredModule]] = {}

    def __call__(self, graphs: Sequence[GraphModule]) -> list[float]:
        """Returns the median milliseconds per call of each graph."""
        built = [self._built(graph) for graph in graphs]
        self._last = {id(graph): (graph, fast) for graph, fast in zip(graphs, built, strict=True)}

        def call(fast: LoweredModule) -> Callable[[], object]:
            return lambda: fast(*self.args, **self.kwargs)

        calls = {str(position): call(fast) for position, fast in enumerate(built)}
        return [timing.median_ms for timing in time_interleaved(calls, self.seconds).values()]

    def _built(self, graph: GraphModule) -> LoweredModule:
        # One graph is compared with many others in turn: it is not built for each anew.
        if id(graph) in self._last:
            return self._last[id(graph)][1]
        return lower(graph, self.args, self.kwargs, self.engines, tolerance=self.tolerance)


def _budget(limits: Mapping[str, float | None]) -> Budget:
    given = [(kind, limit) for kind, limit in limits.items() if limit is not None]
    if len(given) != 1:
        named = " and ".join(kind for kind, _ in given) or "none"
        raise ValueError(f"search_precision takes one of {', '.join(limits)}, got {named}")
    kind, limit = given[0]
    if not math.isfinite(limit) or limit < 0.0 or (limit == 0.0 and kind != "max_drop"):
        least = "at least 0" if kind == "max_drop" else "above 0"
        raise ValueError(f"{kind} must be finite and {least}, got {limit}")
    return Budget(cast("BudgetKind", kind), float(limit))


def _usable(data: object) -> ForwardLoop:
    if isinstance(data, Iterator):
        data = list(cast("Iterator[object]", data))  # gone through several times
    is_empty = isinstance(data, Sequence) and not len(cast("Sequence[object]", data))
    if data is None or is_empty:
        raise CalibrationError(
            f"search_precision needs data, got {data!r}: pass a callable that runs the model, or "
            "an iterable of inputs"
        )
    return cast("ForwardLoop", data)


class _InputsSeenError(Exception):
    """Ends a loop over data whose first inputs are known."""

    def __init__(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        super().__init__()
        self.inputs = args, kwargs


class _Taker(nn.Module):
    """Stands in for a model to see what data calls it with."""

    def __init__(self, model: object) -> None:
        super().__init__()
        graph = getattr(model, "graph", None)
        if graph is not None:
            self.graph = graph

    def forward(self, *args: object, **kwargs: object) -> object:
        raise _InputsSeenError(args, kwargs)


def _first_inputs(
    model: object, data: ForwardLoop
) -> tuple[tuple[object, ...], dict[str, object] | None]:
    try:
        run_forward_loop(_Taker(model), data)
    except _InputsSeenError as found:
        args, kwargs = found.inputs
        return args, kwargs or None
    raise CalibrationError("the data never ran the model: pass at least one batch")


def _backend_for(model: object, backend: str | Backend | None) -> Backend:
    recorded = None
    if isinstance(model, GraphModule) and has_record(model):
        recorded = record_of(model).backend
    return resolve_backend(backend, recorded)


def _silent(step: str) -> None:
    del step
