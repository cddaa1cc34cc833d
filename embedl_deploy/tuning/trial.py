"""Builds a candidate for a graph, and checks that it computes what eager computes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature

import torch
from torch.fx import GraphModule

from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import TuningError
from embedl_deploy.graph.record import record_of
from embedl_deploy.lowering import BuildSettings, LoweredModule, LoweringRequest, lower_graph
from embedl_deploy.lowering.build_errors import BUILD_ERRORS
from embedl_deploy.lowering.guards import python_signature
from embedl_deploy.lowering.measure import fidelity_of
from embedl_deploy.lowering.settings import Terms
from embedl_deploy.passes.integer_conversion import convert
from embedl_deploy.quantize import quantize
from embedl_deploy.transformation import transform
from embedl_deploy.tuning.candidates import TOLERANCES, Candidate, Tolerance
from embedl_deploy.tuning.sample import call
from embedl_deploy.tuning.shapes import export_shapes
from embedl_deploy.tuning.task import Outcome, Reference, Task, outcome_of, same_values
from embedl_deploy.tuning.tuned_graph import CandidateReport, OutputError


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried."""

    report: CandidateReport
    model: LoweredModule | None = None
    """None once it is out of the running."""

    def out(self, reason: str) -> "Trial":
        """Returns the same without its model, for a reason."""
        if self.model is not None:
            release(self.model)
        return Trial(self.report.dropped(reason))


class Builder:
    """Builds candidates for one graph; those that share rewrites share the traced graph."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._graphs: list[tuple[Candidate, GraphModule]] = []

    def build(self, candidate: Candidate) -> Trial:
        """Returns the candidate built, or why it could not be."""
        report = CandidateReport(candidate.label, candidate.precision)
        start = time.perf_counter()
        try:
            model = self._lowered(candidate)
        except BUILD_ERRORS as error:
            return Trial(report.dropped(f"it cannot be built: {_first_line(error)}"))
        report = replace(report, build_seconds=time.perf_counter() - start)
        if not model.assembly.slots:
            return Trial(report.dropped(f"it cannot be built: {_why_nothing(model)}"))
        eager = len(model.report.eager_nodes)
        notes = (*model.report.notes, *((f"{eager} nodes run eager",) if eager else ()))
        return Trial(replace(report, notes=notes), model)

    def _lowered(self, candidate: Candidate) -> LoweredModule:
        graph, example = self._rewritten(candidate), self.task.example
        forward = signature(self.task.module.forward)
        model = lower_graph(
            LoweringRequest(
                graph_module=convert(graph),
                args=example.args,
                kwargs=example.kwargs,
                engines=[candidate.engine],
                python_signature=forward,
                build=BuildSettings(cache_dir=self.task.cache_dir),
                notes=tuple(record_of(graph).notes),
            )
        )
        taken = python_signature(model.assembly.core.signature).parameters
        if list(taken) != list(forward.parameters):
            raise TuningError(
                f"the traced graph takes {list(taken)}, forward takes {list(forward.parameters)}"
            )
        return model

    def _rewritten(self, candidate: Candidate) -> GraphModule:
        for known, graph in self._graphs:
            same_backend = known.backend == candidate.backend
            if same_backend and known.quantization == candidate.quantization:
                return graph
        task, example = self.task, self.task.example
        graph = transform(
            task.module,
            example.args,
            example.kwargs,
            backend=candidate.backend,
            dynamic_shapes=export_shapes(task.module.forward, example, task.spec),
        ).model
        if candidate.quantization is not None:
            graph = quantize(
                graph,
                config=candidate.quantization,
                forward_loop=self._calibrate,
                backend=candidate.backend,
            )
        self._graphs.append((candidate, graph))
        return graph

    def _calibrate(self, model: torch.nn.Module) -> None:
        for sample in self.task.known:
            call(model, sample.copied(self.task.device))


def checked(
    trial: Trial, task: Task, references: Sequence[Reference], tolerance: Tolerance | None
) -> Trial:
    """Returns the trial with how far its outputs are off, or out of the running.

    A call must give what eager gives, within the tolerance of the candidate's precision, leave
    its inputs as eager does, and leave the outputs of earlier calls alone.
    """
    if trial.model is None:
        return trial
    assembly = trial.model.assembly
    strict = LoweredModule(assembly, trial.model.report, Terms(fallback=False))
    outcomes: list[Outcome] = []
    for reference in references:
        sample = reference.sample.copied(task.device)
        try:
            outcomes.append(outcome_of(call(strict.forward, sample), sample))
        except BUILD_ERRORS as error:
            return trial.out(f"it fails on {reference.label}: {_first_line(error)}")
    allowed = tolerance or TOLERANCES[trial.report.precision]
    worst: dict[int, OutputError] = {}
    for reference, outcome in zip(references, outcomes, strict=True):
        trouble = _difference(outcome, reference, allowed, worst)
        if trouble:
            return replace(trial, report=_with_outputs(trial, worst, 0)).out(trouble)
    return replace(trial, report=_with_outputs(trial, worst, len(references)))


def release(model: LoweredModule) -> None:
    """Gives back what the engines of a model hold."""
    for slot in model.assembly.slots.values():
        engine: Engine = slot.engine
        if engine.is_active:
            engine.deactivate()


def _difference(
    outcome: Outcome, reference: Reference, allowed: Tolerance, worst: dict[int, OutputError]
) -> str:
    """Returns what is wrong with an outcome, "" if nothing is; notes errors by output."""
    expected = reference.outcome
    if outcome.structure != expected.structure:
        return f"its outputs are nested otherwise than eager's on {reference.label}"
    trouble = ""
    for place, (value, wanted) in enumerate(zip(outcome.outputs, expected.outputs, strict=True)):
        found = fidelity_of([value], [wanted])
        before = worst.get(place, OutputError(place, 0.0, 1.0))
        # A comparison with NaN is false either way: "not smaller" keeps it.
        error = before.relative_error
        error = found.relative_error if not found.relative_error <= error else error
        cosine = before.cosine
        cosine = found.cosine if not found.cosine >= cosine else cosine
        worst[place] = OutputError(place, error, cosine)
        within = found.relative_error <= allowed.relative_error and found.cosine >= allowed.cosine
        if not within and not trouble:
            trouble = (
                f"output {place} is wrong on {reference.label}: off by "
                f"{found.relative_error:.2g} relative, cosine {found.cosine:.5f}; allowed "
                f"{allowed.relative_error:.2g} and {allowed.cosine:.5f}"
            )
    if trouble or same_values(reference.sample.copied().leaves(), outcome.inputs):
        return trouble
    return f"it changes its inputs on {reference.label}, which eager does not"


def _with_outputs(trial: Trial, worst: dict[int, OutputError], count: int) -> CandidateReport:
    ordered = tuple(worst[place] for place in sorted(worst))
    return replace(trial.report, outputs=ordered, checked=count)


def _why_nothing(model: LoweredModule) -> str:
    for subgraph in model.report.subgraphs:
        for failure in subgraph.failures:
            return failure.reason
    for refusal in model.report.refusals:
        return f"{refusal.engine} takes no node, such as {refusal.node}: {refusal.reason}"
    return "the graph has nothing to compute"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
