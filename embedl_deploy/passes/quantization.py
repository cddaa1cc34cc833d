"""The stage that makes a graph ready for low precision: smooth, insert, calibrate."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PlanError, QuantizationError
from embedl_deploy.graph.record import record_of
from embedl_deploy.graph.traced_module import with_own_modules
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.insertion import accepted_dtypes, insert_quantizers
from embedl_deploy.passes.predicted_speed import predict_speed
from embedl_deploy.passes.scale_sharing import share_scales
from embedl_deploy.patterns.smooth.readers import counting_once
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.placement import Placement
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import (
    PassRecord,
    Pattern,
    PatternMatch,
    Refusal,
    TransformationReport,
)
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.pattern import instances
from embedl_deploy.rewriting.workspace import Workspace

Matches = Sequence[PatternMatch] | Mapping[Node, Mapping[type[Pattern], PatternMatch]]
"""Matches in a row, or as a plan keeps them: by node, then by pattern."""


def own_modules(graph_module: GraphModule) -> GraphModule:
    """Returns a copy with module objects of its own around the same parameters."""
    return with_own_modules(graph_module)


def find_matches(
    graph_module: GraphModule, patterns: Sequence[type[Pattern] | Pattern]
) -> tuple[PatternMatch, ...]:
    """Returns every place where one of the patterns fits, in graph order; changes nothing."""
    index = Workspace(graph_module).index
    with counting_once(graph_module.graph):
        found = [
            match
            for rule in instances(patterns)
            for root in index.candidates(rule.anchors())
            if (match := _match_at(rule, root, graph_module)) is not None
        ]
    return tuple(sorted(found, key=lambda match: match.root))


def quantize_graph(
    graph_module: GraphModule, matches: Matches | None, config: QuantConfig, backend: Backend
) -> PassRecord:
    """Inserts the quantizers of ``matches``, those of the backend's patterns if ``None``.

    Raises:
        QuantizationError: The backend quantizes nothing, or not to the precisions asked for.
    """
    placement = placement_of(backend)
    unknown = tuple(accepted_dtypes(config, placement))
    if unknown:
        raise QuantizationError(
            f"backend {backend.name!r} has no kernels for {' and '.join(unknown)}"
        )
    if matches is None:
        matches = find_matches(graph_module, backend.quantized_patterns)
    here = tuple(_transferred(match, graph_module) for match in _in_a_row(matches))
    record = insert_quantizers(graph_module, here, config, placement)
    shared = share_scales(graph_module, placement)
    speed = predict_speed(graph_module, backend)
    return replace(record, notes=(*record.notes, *shared, *speed))


def placement_of(backend: Backend) -> Placement:
    """Returns how ``backend`` takes quantized tensors.

    Raises:
        QuantizationError: It takes none.
    """
    if not isinstance(backend.placement, Placement):
        raise QuantizationError(
            f"backend {backend.name!r} has no placement for quantizers: it runs in float only"
        )
    return backend.placement


def fix_weight_scales(model: nn.Module, *, keeps_fixed: bool = False) -> int:
    """Fixes the scale of every weight quantizer; returns how many were fixed.

    Args:
        model: A quantized model.
        keeps_fixed: Whether scales that are constants already stay as they are.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, WeightedFused):
            quantizer = module.weight_fake_quant
            if isinstance(quantizer, WeightFakeQuantize):
                if keeps_fixed and quantizer.frozen:
                    continue
                quantizer.freeze(module.folded_weight_and_bias()[0])
                count += 1
    return count


def report_stages(
    graph_module: GraphModule, backend: Backend, records: Sequence[PassRecord]
) -> TransformationReport:
    """Attaches to the graph a report of ``records`` after those of the stages before."""
    known = record_of(graph_module)
    before = known.report
    earlier = before.passes if isinstance(before, TransformationReport) else ()
    report = TransformationReport(
        passes=(*earlier, *records),
        backend=backend.name,
        tracer=known.tracer,
        notes=tuple(known.notes),
        key_map=dict(known.key_map),
        coverage=dict(before.coverage) if isinstance(before, TransformationReport) else {},
    )
    known.report, known.backend = report, backend.name
    return report


def _match_at(rule: Pattern, root: Node, graph_module: GraphModule) -> PatternMatch | None:
    found = rule.match(root, graph_module)
    if isinstance(found, Refusal):
        refusal, found = found, PatternMatch(rule, graph_module, root, (root,), {})
        found.refusal = refusal
    elif found is not None and type(rule).match is not Pattern.match:
        found.refusal = found.refusal or rule.decline(found)
    return found


def _transferred(match: PatternMatch, graph_module: GraphModule) -> PatternMatch:
    """Returns the match of the same pattern at the node of the same name in this graph.

    Raises:
        PlanError: The graph has no such node, or the pattern does not fit there.
    """
    if match.graph_module is graph_module:
        return match
    root = next((node for node in graph_module.graph.nodes if node.name == match.root.name), None)
    found = None if root is None else _match_at(match.pattern, root, graph_module)
    if found is None:
        raise PlanError(
            f"{match.pattern.name} at %{match.root.name} fits nothing in this graph: take the "
            "matches from a plan of the very model that is quantized"
        )
    found.apply = match.apply
    return found


def _in_a_row(matches: Matches) -> tuple[PatternMatch, ...]:
    if isinstance(matches, Mapping):
        return tuple(match for by_pattern in matches.values() for match in by_pattern.values())
    return tuple(matches)
