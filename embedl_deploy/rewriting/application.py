"""Runs patterns over a graph: finds every match, settles overlaps, applies, keeps records."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush

from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import module_of, parts_of
from embedl_deploy.graph.record import record_of
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.pattern import Pattern, also_used, instances
from embedl_deploy.rewriting.records import PassRecord, SiteRecord, site_record
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.rewriter import Applied, apply_match
from embedl_deploy.rewriting.verify import Check
from embedl_deploy.rewriting.workspace import Workspace

MOST_ROUNDS = 50
"""How often conversions run over a graph before two of them are taken to undo each other."""

Gate = Callable[[PatternMatch], Refusal | None]
"""Asked before each match is applied; a refusal leaves it alone."""

_Entry = tuple[int, Node, int, PatternMatch]
"""In order of turn: more nodes first, then the earlier root, then the earlier pattern."""


def apply_patterns(
    graph_module: GraphModule,
    patterns: Sequence[type[Pattern] | Pattern],
    stage: str | None = None,
    *,
    until_fixpoint: bool = False,
    gate: Gate | None = None,
    matches: list[PatternMatch] | None = None,
    verify: Check | None = None,
) -> PassRecord:
    """Rewrites every place where one of ``patterns`` fits.

    The larger match goes first; ties go by graph order, then by the order of ``patterns``.
    A match that an earlier rewrite changed is matched again at its root, and dropped with the
    reason if it no longer fits. A match that fails leaves the graph as it was before it.

    Args:
        graph_module: The graph; it is changed in place, its Python code is not written anew.
        patterns: Classes or objects.
        stage: The name of the stage in the record; the patterns' phase if None.
        until_fixpoint: Whether to run again until nothing fits any more.
        gate: Asked before each match is applied.
        matches: If given, receives every match of a whole tree, refused ones included.
        verify: Checks each replacement before it is wired in; see ``Verifier``.

    Returns:
        What was applied and what was left alone, with reasons.

    Raises:
        PatternError: Two patterns undo each other, or one cannot be run at all.
    """
    rules = instances(patterns)
    name = stage or (rules[0].phase.value if rules else "patterns")
    run = _Run(graph_module, rules, name, gate, [] if matches is None else matches, verify)
    began = time.perf_counter()
    rounds = 0
    while run.round():
        rounds += 1
        if not until_fixpoint:
            break
        if rounds >= MOST_ROUNDS:
            raise _endless(run)
    run.drop_unused_modules()
    return PassRecord(
        name, tuple(run.applied), tuple(run.refused.values()), time.perf_counter() - began
    )


class _Run:
    """The state of one call of ``apply_patterns``."""

    def __init__(
        self,
        graph_module: GraphModule,
        rules: tuple[Pattern, ...],
        stage: str,
        gate: Gate | None,
        matches: list[PatternMatch],
        verify: Check | None,
    ) -> None:
        self.graph_module = graph_module
        self.rules = rules
        self.stage = stage
        self.gate = gate
        self.matches = matches
        self.verify = verify
        self.workspace = Workspace(graph_module)
        self.called_before = dict(_called_modules(graph_module))
        self.applied: list[SiteRecord] = []
        self.refused: dict[tuple[str, str, tuple[str, ...]], SiteRecord] = {}
        self.changes: dict[Node, tuple[int, str]] = {}
        self.found_at: dict[PatternMatch, int] = {}

    def round(self) -> bool:
        """Goes over the graph once; tells whether anything was rewritten."""
        before = len(self.applied)
        queue = self._collect()
        while queue:
            _, _, position, match = heappop(queue)
            again = self._as_it_stands(match)
            if again is None:
                continue
            if len(again.nodes) != len(match.nodes):
                heappush(queue, (-len(again.nodes), again.root, position, again))
                continue
            self._apply(again)
        return len(self.applied) > before

    def drop_unused_modules(self) -> None:
        """Unregisters modules that the graph called before the run and that nothing holds now."""
        held = dict(_called_modules(self.graph_module))
        dropped = {number for number in self.called_before if number not in held}
        listed = list(self.graph_module.named_modules(remove_duplicate=False)) if dropped else []
        for path, module in listed:
            if id(module) in dropped:
                self.workspace.forget(path)

    def _collect(self) -> list[_Entry]:
        queue: list[_Entry] = []
        for position, rule in enumerate(self.rules):
            for root in self.workspace.index.candidates(rule.anchors()):
                match = self._match(rule, root)
                if match is not None:
                    queue.append((-len(match.nodes), root, position, match))
        heapify(queue)
        return queue

    def _match(self, rule: Pattern, root: Node) -> PatternMatch | None:
        """Returns a match that may be applied; one that was refused is recorded."""
        found = rule.match(root, self.graph_module)
        if isinstance(found, Refusal):
            refusal = found
            found = PatternMatch(rule, self.graph_module, root, (root,), {})
            found.refusal = refusal
        elif found is not None and type(rule).match is not Pattern.match:
            found.refusal = found.refusal or rule.decline(found)
        if found is None:
            return None
        found.stage = self.stage
        if found.refusal is not None:
            self._refuse(found, found.refusal)
            return None
        self.found_at[found] = len(self.applied)
        return found

    def _as_it_stands(self, match: PatternMatch) -> PatternMatch | None:
        """Returns the match if nothing it touches has changed, else what fits at its root now."""
        since = self.found_at[match]
        touched = [node for node in match.nodes if self.changes.get(node, (0, ""))[0] > since]
        if not touched and not match.root._erased:
            return match
        again = None if match.root._erased else self._match(match.pattern, match.root)
        if again is None:
            gone = [node for node in (*match.nodes, match.root) if node._erased]
            node = next(iter((*gone, *touched)), match.root)
            _, culprit = self.changes.get(node, (0, "an earlier rewrite"))
            self._refuse(match, Refusal(f"%{node.name} was changed by {culprit}"))
        return again

    def _apply(self, match: PatternMatch) -> None:
        refusal = self.gate(match) if self.gate else None
        if refusal is not None:
            self._refuse(match, refusal)
            return
        record = site_record(match)
        neighbours = [*match.nodes, *(reader for node in match.nodes for reader in node.users)]
        outcome = apply_match(self.workspace, match, self.verify)
        if isinstance(outcome, Refusal):
            self._refuse(match, outcome)
            return
        self.matches.append(match)
        self.applied.append(replace(record, made=outcome.made.name))
        change = (len(self.applied), f"{match.pattern.name} at %{record.site}")
        self.changes.update((node, change) for node in neighbours)
        self._note_keys(outcome)

    def _refuse(self, match: PatternMatch, refusal: Refusal) -> None:
        match.refusal, match.apply = refusal, False
        record = site_record(match, refusal=refusal)
        key = (record.pattern, record.site, record.nodes)
        if key not in self.refused:
            self.refused[key] = record
            self.matches.append(match)

    def _note_keys(self, outcome: Applied) -> None:
        if outcome.replaced_keys:
            record_of(self.graph_module).key_map.update(outcome.replaced_keys)


def _called_modules(graph_module: GraphModule) -> Iterator[tuple[int, nn.Module]]:
    """Yields, by identity, the modules that the graph calls and the parts that these hold."""
    for node in graph_module.graph.nodes:
        pending = [module_of(node)] if node.op == "call_module" else []
        while pending:
            module = pending.pop()
            if module is not None:
                yield id(module), module
                pending += [*parts_of(module), *module.children()]


def _endless(run: _Run) -> PatternError:
    recent = run.applied[-20:]
    names = list(dict.fromkeys(record.pattern for record in reversed(recent)))[:2]
    who = " and ".join(repr(name) for name in names)
    verb = "undo each other" if len(names) > 1 else "never comes to an end"
    return PatternError(
        f"after {MOST_ROUNDS} rounds the graph still changes: {who} {verb}, last at "
        f"%{recent[-1].site} ({recent[-1].source or 'no source line'}). Give one of them a "
        "check() that declines what the other makes"
    )
