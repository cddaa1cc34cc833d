"""Why a pattern fired, was declined, or did not fit: the records behind ``explain``."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from embedl_deploy.graph.record import record_of
from embedl_deploy.graph.traced_module import structural_copy
from embedl_deploy.rewriting.application import apply_patterns
from embedl_deploy.rewriting.describe import describe_end, describe_target, either
from embedl_deploy.rewriting.difference import Difference, NearMiss, fault
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.near_misses import near_misses, refused_site, whole_matches
from embedl_deploy.rewriting.pattern import Pattern, instances
from embedl_deploy.rewriting.records import (
    PassRecord,
    SiteRecord,
    TransformationReport,
    site_record,
)
from embedl_deploy.rewriting.refusal import is_fault
from embedl_deploy.rewriting.stages import stages_of
from embedl_deploy.rewriting.workspace import Workspace


@dataclass(frozen=True)
class Explanation:
    """What became of one pattern in one graph; ``str()`` of it is what a person wants to read."""

    pattern: str
    """Kebab-case name of the pattern."""

    stage: str
    """The stage that runs it."""

    fired: tuple[SiteRecord, ...] = ()
    """Where it was applied, or would be."""

    refused: tuple[NearMiss, ...] = ()
    """Where the whole tree fits and readers, ``check`` or an earlier rewrite said no."""

    near_misses: tuple[NearMiss, ...] = ()
    """Where the tree nearly fits, best first."""

    note: str = ""
    """What to know where there is nothing else to say."""

    @property
    def first(self) -> NearMiss | None:
        """What comes nearest to firing: a declined match, else the best near miss."""
        return next(iter((*self.refused, *self.near_misses)), None)

    def __str__(self) -> str:
        counts = f"fired {_times(len(self.fired))}, declined {_times(len(self.refused))}"
        lines = [f"{self.pattern} ({self.stage}): {counts}"]
        lines += [f"  fired at %{site.site}{_source(site.source)}" for site in self.fired]
        lines += [line for miss in self.refused for line in _lines("declined", miss)]
        lines += [line for miss in self.near_misses for line in _lines("near miss", miss)]
        return "\n".join([*lines, f"  {self.note}"] if self.note else lines)


def explain_graph(
    graph_module: GraphModule,
    pattern: type[Pattern] | Pattern,
    node: Node | str | None = None,
    others: Sequence[type[Pattern] | Pattern] = (),
) -> Explanation:
    """Returns what became, or would become, of ``pattern`` in a traced graph.

    The graph is not changed. One that was rewritten already is looked at as it is, together
    with its report; on any other the stages of ``others`` run first on a scratch copy, so that
    a fusion is explained on what the conversions leave.

    Args:
        graph_module: The graph.
        pattern: The rule in question.
        node: Only places that involve this node, or the node of this name.
        others: The patterns that it runs among.

    Raises:
        ValueError: The graph has no such node.
    """
    (rule,) = instances([pattern])
    name = node.name if isinstance(node, Node) else node
    report = record_of(graph_module).report
    if isinstance(report, TransformationReport):
        before, record = graph_module, _joined(report, rule)
    else:
        before, record = _staged(graph_module, rule, others)
    around = _named(name, (before, graph_module))
    where = around.graph.owning_module if around is not None else before
    assert where is not None, "a node of a GraphModule's graph"
    return _explanation(rule, where, record, around)


def _explanation(
    rule: Pattern, graph_module: GraphModule, record: PassRecord | None, around: Node | None
) -> Explanation:
    index = Workspace(graph_module).index
    whole = tuple(whole_matches(rule, graph_module, index.candidates(rule.anchors())))
    declined = [refused_site(rule, match) for match in whole if match.refusal is not None]
    if record is None:
        fired = tuple(_would_fire(match) for match in whole if match.refusal is None)
    else:
        fired = tuple(site for site in record.applied if site.pattern == rule.name)
        declined += _overlapped(rule, record, declined)
    covered = [site.nodes for site in fired] + [miss.matched for miss in declined]
    misses = near_misses(rule, graph_module, around, covered=covered)
    if around is not None:
        fired = tuple(site for site in fired if around.name in site.nodes)
        declined = [miss for miss in declined if around.name in miss.matched]
    note = "" if fired or declined or misses else _nothing_like_it(rule, around)
    return Explanation(rule.name, rule.phase.value, fired, tuple(declined), misses, note)


def _staged(
    graph_module: GraphModule, rule: Pattern, others: Sequence[type[Pattern] | Pattern]
) -> tuple[GraphModule, PassRecord | None]:
    """Returns the graph that the rule's stage meets, and what the stage does to it."""
    rules = [other for other in instances(others) if other.name != rule.name]
    scratch = structural_copy(graph_module, deferred=True)
    stages = stages_of((*rules, rule))
    for stage in stages:
        if stage.name == rule.phase.value:
            break
        apply_patterns(scratch, stage.patterns, stage.name, until_fixpoint=stage.until_fixpoint)
    if rule.phase.names_places_only:
        return scratch, None
    here = next(stage for stage in stages if stage.name == rule.phase.value)
    met = structural_copy(scratch, deferred=True)
    record = apply_patterns(scratch, here.patterns, here.name, until_fixpoint=here.until_fixpoint)
    # What conversions leave is what another round of them would meet.
    return (scratch if here.until_fixpoint else met), record


def _named(name: str | None, graphs: Sequence[GraphModule]) -> Node | None:
    if name is None:
        return None
    for graph_module in graphs:
        for node in graph_module.graph.nodes:
            if node.name == name:
                return node
    known = ", ".join(f"%{node.name}" for node in list(graphs[-1].graph.nodes)[:12])
    raise ValueError(f"the graph has no node %{name}; it begins with {known}")


def _joined(report: TransformationReport, rule: Pattern) -> PassRecord | None:
    """Returns what a report says, None where the rule's stage has not run yet."""
    if not any(record.name == rule.phase.value for record in report.passes):
        return None
    return PassRecord("report", tuple(report.applied_sites()), tuple(report.refusals()))


def _would_fire(match: PatternMatch) -> SiteRecord:
    return site_record(match)


def _overlapped(rule: Pattern, record: PassRecord, known: Sequence[NearMiss]) -> list[NearMiss]:
    """Returns the refusals on record beyond those that the graph itself shows."""
    seen = {miss.site for miss in known}
    return [
        NearMiss(
            rule.name,
            site.site,
            site.nodes,
            (_on_record(site),),
            site.source,
        )
        for site in record.refused
        if site.pattern == rule.name and site.site not in seen
    ]


def _on_record(site: SiteRecord) -> Difference:
    reason = site.reason or ""
    if is_fault(reason):
        return Difference("fault", site.site, *fault(site.pattern, reason), site.source)
    expected = "nodes that no other rewrite has changed"
    cure = "nothing, if that rewrite is wanted; else veto it or leave its pattern out"
    return Difference("overlap", site.site, expected, reason, cure, site.source)


def _nothing_like_it(rule: Pattern, around: Node | None) -> str:
    where = "in the graph" if around is None else f"around %{around.name}"
    if rule.tree is not None and type(rule).match is Pattern.match:
        return f"nothing {where} comes near its tree, which ends in {describe_end(rule.tree)}"
    roots = either(describe_target(target) for target in rule.roots) if rule.roots else "any call"
    return f"its match() finds nothing {where}; it starts from {roots}"


def _lines(what: str, miss: NearMiss) -> list[str]:
    head, *rest = str(miss).removeprefix(f"{miss.pattern} at ").splitlines()
    return [f"  {what} at {head}", *(f"  {line}" for line in rest)]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _source(source: str | None) -> str:
    return f" ({source})" if source else ""
