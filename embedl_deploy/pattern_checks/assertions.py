"""What must hold wherever a pattern is applied."""

import operator
from collections.abc import Sequence

import networkx as nx
from torch.fx import GraphModule

from embedl_deploy.graph.provenance import rewrites_of
from embedl_deploy.graph.structure import to_networkx
from embedl_deploy.graph.text import graph_text
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.model_check import ModelCheck
from embedl_deploy.rewriting.near_misses import whole_matches
from embedl_deploy.rewriting.pattern import Pattern
from embedl_deploy.rewriting.records import PassRecord, site_record
from embedl_deploy.rewriting.refusal import is_fault
from embedl_deploy.rewriting.verify import Verifier


class PatternFailureError(AssertionError):
    """A pattern is wrong on a graph, which the message holds."""

    def __init__(self, reason: str, graph_module: GraphModule) -> None:
        super().__init__(f"{reason}, in\n{graph_text(graph_module)}")


def first_match(rule: Pattern, graph_module: GraphModule) -> PatternMatch | None:
    """Returns the largest match, one that is not declined if there is one."""
    calls = [node for node in graph_module.graph.nodes if node.op.startswith("call_")]
    found = list(whole_matches(rule, graph_module, calls))
    ranked = sorted(found, key=lambda match: (match.refusal is not None, -len(match.nodes)))
    return next(iter(ranked), None)


def assert_right(rule: Pattern, graph_module: TracedModule, but: str = "") -> PassRecord:
    """Asserts that a rule, applied to a graph, keeps every promise.

    Returns:
        Where it was applied, and where it was declined.

    Raises:
        PatternFailureError: It broke one.
    """
    where = f" with {but}" if but else ""
    if rule.phase.names_places_only:
        return _matches_only(rule, graph_module)
    result = structural_copy(graph_module, deferred=True)
    check = ModelCheck(graph_module)
    record = apply_patterns(result, [rule], verify=Verifier())
    for site in record.refused:
        if is_fault(site.reason or ""):
            raise PatternFailureError(f"{site}{where}", graph_module)
    if not record.applied:
        return record
    moved = check.moved(result, rule.tolerance)
    if moved.too_far:
        raise PatternFailureError(f"{rule.name}{where}: the output {moved}", graph_module)
    _assert_metadata(rule, result, record)
    again = apply_patterns(result, [rule])
    if again.applied:
        raise PatternFailureError(f"{again.applied[0]}: it rewrites its own result", graph_module)
    return record


def assert_commutes(rule: Pattern, rivals: Sequence[Pattern], base: TracedModule) -> None:
    """Asserts that the order in which patterns are listed matters only where a refusal says so.

    Raises:
        PatternFailureError: Two orders give two graphs, and nothing says why.
    """
    for rival in rivals:
        if rival.name == rule.name:
            continue
        graphs = [structural_copy(base, deferred=True) for _ in range(2)]
        records = [
            apply_patterns(graphs[0], [rule, rival]),
            apply_patterns(graphs[1], [rival, rule]),
        ]
        reasons = [site.reason or "" for record in records for site in record.refused]
        explained = any(rule.name in reason or rival.name in reason for reason in reasons)
        if not explained and not _same(graphs[0], graphs[1]):
            raise PatternFailureError(
                f"{rule.name} and {rival.name} give another graph when listed in another order, "
                "and no refusal says why",
                base,
            )


def _same(first: GraphModule, second: GraphModule) -> bool:
    return nx.is_isomorphic(to_networkx(first), to_networkx(second), node_match=operator.eq)


def _matches_only(rule: Pattern, graph_module: GraphModule) -> PassRecord:
    """Returns where a rule fits whose stage does the work itself."""
    calls = [node for node in graph_module.graph.nodes if node.op.startswith("call_")]
    found = list(whole_matches(rule, graph_module, calls))
    sites = [(match, site_record(match, refusal=match.refusal)) for match in found]
    return PassRecord(
        rule.phase.value,
        tuple(site for match, site in sites if match.refusal is None),
        tuple(site for match, site in sites if match.refusal is not None),
    )


def _assert_metadata(rule: Pattern, result: GraphModule, record: PassRecord) -> None:
    made = {site.made for site in record.applied}
    for node in result.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            raise PatternFailureError(f"%{node.name} carries no recorded value", result)
        if node.name in made and node.op.startswith("call_") and rewrites_of(node):
            names = [rewrite.pattern for rewrite in rewrites_of(node)]
            if rule.name not in names:
                raise PatternFailureError(f"%{node.name} does not tell which rule made it", result)
