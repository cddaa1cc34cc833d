"""Checks that the quantizers of a graph stand as the target needs them."""

import time

from torch.fx import GraphModule

from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.passes.qdq_rules import RULES, Target
from embedl_deploy.passes.qdq_view import view_of
from embedl_deploy.passes.quantization import placement_of
from embedl_deploy.quantization.finding import QdqFinding
from embedl_deploy.rewriting import PassRecord, TransformationReport
from embedl_deploy.rewriting.application import graphs_of
from embedl_deploy.rewriting.backend import Backend


def findings_in(graph_module: GraphModule, backend: Backend) -> tuple[QdqFinding, ...]:
    """Returns every place where quantizers are not as ``backend`` needs them, by rule.

    Args:
        graph_module: A fake-quantized or a converted graph, bodies of conditions included.
        backend: The target.

    Raises:
        QuantizationError: The target quantizes nothing.
    """
    target = Target(
        placement_of(backend),
        tuple(pattern.name for pattern in backend.fusion_patterns),
        reasons_in(graph_module),
    )
    views = [view_of(part) for _, part in graphs_of(graph_module)]
    return tuple(finding for rule in RULES for view in views for finding in rule(view, target))


def check_record(graph_module: GraphModule, backend: Backend) -> PassRecord:
    """Returns what the check found as a record for the report."""
    began = time.perf_counter()
    notes = tuple(str(finding) for finding in findings_in(graph_module, backend))
    return PassRecord("check", seconds=time.perf_counter() - began, notes=notes)


def reasons_in(graph_module: GraphModule) -> dict[str, str]:
    """Returns why operands were left in float, by the node that would have read them rounded."""
    report = record_of(graph_module).report if has_record(graph_module) else None
    if not isinstance(report, TransformationReport):
        return {}
    return {
        site.site: site.reason or ""
        for record in report.passes
        if record.name == "quantization"
        for site in record.refused
    }
