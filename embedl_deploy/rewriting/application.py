# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Runs patterns over a graph: finds every match, settles overlaps, applies, keeps records."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush

from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import module_at, module_of, parts_of
from embedl_deploy.graph.record import record_of
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.pattern import Pattern, instances
from embedl_deploy.rewriting.records import PassRecord, SiteRecord, site_record
from embedl_deploy.rewriting.refusal import Refusal
from embedl_deploy.rewriting.rewriter import apply_match
from embedl_deploy.rewriting.search_guard import found_again, watching
from embedl_deploy.rewriting.verify import Check
from embedl_deploy.rewriting.workspace import Workspace, named_modules
from embedl_deploy.tracing.quiet import quiet_torch

MOST_ROUNDS = 50
"""How often conversions run over a graph before two of them are taken to undo each other."""

Gate = Callable[[PatternMatch], Refusal | None]
"""Asked before each match is applied; a refusal leaves it alone."""

_Key = tuple[str, str, tuple[str, ...]]
"""Pattern, last node, consumed nodes."""

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
    settled: list[PatternMatch] = [] if matches is None else matches
    began = time.perf_counter()
    applied: list[SiteRecord] = []
    refused: list[SiteRecord] = []
    for scope, part in graphs_of(graph_module):
        run = _Run(part, rules, name, gate, verify, scope)
        with quiet_torch():
            run.until_fixpoint() if until_fixpoint else run.round()
        run.drop_unused_modules()
        settled += run.matches.values()
        applied += run.applied
        refused += run.refused.values()
        if run.applied and part is not graph_module:
            part.recompile()
    return PassRecord(name, tuple(applied), tuple(refused), time.perf_counter() - began)


class _Run:
    """The state of one call of ``apply_patterns``."""

    def __init__(
        self,
        graph_module: GraphModule,
        rules: tuple[Pattern, ...],
        stage: str,
        gate: Gate | None,
        verify: Check | None,
        scope: str,
    ) -> None:
        self.graph_module = graph_module
        self.rules = rules
        self.stage = stage
        self.gate = gate
        self.verify = verify
        self.scope = scope
        self.workspace = Workspace(graph_module, is_body=bool(scope))
        self.matches: dict[_Key, PatternMatch] = {}
        self.applied: list[SiteRecord] = []
        self.refused: dict[_Key, SiteRecord] = {}
        self.changes: dict[Node, tuple[int, str]] = {}
        self.found_at: dict[PatternMatch, int] = {}
        self.released: dict[int, nn.Module] = {}
        key_map = {} if scope else record_of(graph_module).key_map
        self.made_from = {key: old for old, keys in key_map.items() for key in keys}

    def until_fixpoint(self) -> None:
        """Goes over the graph until nothing fits any more."""
        for _ in range(MOST_ROUNDS):
            if not self.round():
                return
        raise _endless(self)

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
        """Unregisters modules that rewrites took out of the graph and that nothing holds now."""
        if not self.released:
            return
        held = _called_modules(self.graph_module)
        dropped = {
            number
            for number, module in self.released.items()
            if not any(id(inner) in held for inner in module.modules())
        }
        if not dropped:
            return
        gone: dict[str, tuple[str, ...]] = {}
        for path, module in list(named_modules(self.graph_module, remove_duplicate=False)):
            if id(module) in dropped:
                gone.update((f"{path}.{key}", ()) for key in module.state_dict())
                self.workspace.forget(path)
        self._note_keys(gone)

    def _collect(self) -> list[_Entry]:
        queue: list[_Entry] = []
        with watching(self.graph_module, self.rules, whole=self.verify is not None) as search:
            for position, rule in enumerate(self.rules):
                for root, found in search(rule, self.workspace.index.candidates(rule.anchors())):
                    match = self._settled(found)
                    if match is not None:
                        queue.append((-len(match.nodes), root, position, match))
        heapify(queue)
        return queue

    def _settled(self, found: PatternMatch | None) -> PatternMatch | None:
        """Returns a match that may be applied; one that was refused is recorded."""
        if found is None:
            return None
        found.stage, found.scope = self.stage, self.scope
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
        again = None if match.root._erased else self._settled(found_again(match, self.graph_module))
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
        inputs = match.inputs
        touched = [*match.nodes, *(reader for node in match.nodes for reader in node.users)]
        outcome = apply_match(self.workspace, match, self.verify)
        if isinstance(outcome, Refusal):
            self._refuse(match, outcome)
            return
        record = site_record(match, made=f"{self.scope}{outcome.made.name}")
        key = _key_of(record)
        self.refused.pop(key, None)
        self.matches.pop(key, None)
        self.matches[key] = match
        self.applied.append(record)
        # What the replacement reads beyond the match's own inputs gained a reader.
        reads = {read: None for node in outcome.new_nodes for read in node.all_input_nodes}
        touched += [read for read in reads if read not in inputs]
        change = (len(self.applied), f"{match.pattern.name} at %{record.site}")
        self.changes.update((node, change) for node in (*touched, *outcome.erased))
        self._release(outcome.erased)
        self._note_keys(outcome.replaced_keys)

    def _release(self, erased: tuple[Node, ...]) -> None:
        for node in erased:
            module = module_of(node)
            if module is not None:
                self.released.update((id(held), held) for held in (module, *parts_of(module)))

    def _refuse(self, match: PatternMatch, refusal: Refusal) -> None:
        match.refusal, match.apply = refusal, False
        record = site_record(match, refusal=refusal)
        key = _key_of(record)
        if key not in self.refused:
            self.refused[key] = record
            self.matches.setdefault(key, match)

    def _note_keys(self, replaced: Mapping[str, tuple[str, ...]]) -> None:
        if self.scope or not replaced:
            return
        known = record_of(self.graph_module).key_map
        for key, keys in replaced.items():
            old = self.made_from.get(key, key)
            rest = (other for other in known.get(old, ()) if other not in (key, *keys))
            known[old] = (*rest, *keys)
            self.made_from.update(dict.fromkeys(keys, old))


def graphs_of(graph_module: GraphModule, scope: str = "") -> Iterator[tuple[str, GraphModule]]:
    """Yields a graph and the bodies of its conditions and loops, each with its path."""
    yield scope, graph_module
    for node in graph_module.graph.find_nodes(op="get_attr"):
        for reader in node.users:
            if isinstance(reader.target, OpOverload):
                break  # a tensor: no ATen op takes a graph
        else:
            body = module_at(graph_module, str(node.target))
            if isinstance(body, GraphModule):
                yield from graphs_of(body, f"{scope}{node.target}.")


def _key_of(record: SiteRecord) -> _Key:
    return (record.pattern, record.site, record.nodes)


def _called_modules(graph_module: GraphModule) -> set[int]:
    """Returns the identities of modules that the graph calls or reads, and of what these hold."""
    held: set[int] = set()
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            # The module that owns a parameter which is read, though not called itself.
            held.add(id(module_at(graph_module, str(node.target).rpartition(".")[0])))
        pending = [module_of(node)]
        while pending:
            module = pending.pop()
            if module is not None and id(module) not in held:
                held.add(id(module))
                pending += [*parts_of(module), *module._modules.values()]
    return held


def _endless(run: _Run) -> PatternError:
    recent = run.applied[-20:]
    names = list(dict.fromkeys(record.pattern for record in reversed(recent)))[:2]
    who = " and ".join(repr(name) for name in names)
    verb = "undo each other" if len(names) > 1 else "never comes to an end"
    cure = "Give one of them a check() that declines what the other makes"
    if len(names) == 1 and len({record.site for record in recent}) == 1:
        cure = (
            "What it makes reads the node that it replaces, which is there to match again: build "
            "from match.inputs"
        )
    return PatternError(
        f"after {MOST_ROUNDS} rounds the graph still changes: {who} {verb}, last at "
        f"%{recent[-1].site} ({recent[-1].source or 'no source line'}). {cure}"
    )
