"""Finds the places where a pattern nearly fits, best first."""

from collections.abc import Iterator, Sequence
from itertools import islice

from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import is_call, source_line
from embedl_deploy.rewriting.attempt import Attempt
from embedl_deploy.rewriting.difference import Aspect, Difference, NearMiss, differ, fault
from embedl_deploy.rewriting.finding import found_at
from embedl_deploy.rewriting.match import PatternMatch
from embedl_deploy.rewriting.near_matching import near
from embedl_deploy.rewriting.objections import Place
from embedl_deploy.rewriting.pattern import Pattern, also_used
from embedl_deploy.rewriting.refusal import Refusal, is_fault
from embedl_deploy.rewriting.telling import told
from embedl_deploy.rewriting.tree import Tree
from embedl_deploy.rewriting.tree_walk import targets_in

_MOST_WAYS = 400
"""How many ways to fit one tree at one root are looked at."""

_MOST_DIFFERENCES = 2

_Rank = tuple[int, int, int, Node]

_LIKELIHOOD: dict[Aspect, int] = {"value": 2, "extra": 2, "link": 3}
"""Ranks equal numbers of differences: a wrong node is likelier than one too many or missing."""


def near_misses(
    pattern: Pattern,
    graph_module: GraphModule,
    around: Node | None = None,
    *,
    covered: Sequence[Sequence[str]] = (),
    most: int = 5,
) -> tuple[NearMiss, ...]:
    """Returns where the tree of ``pattern`` fits but for one or two differences.

    Most fitting nodes for fewest differences first, ties by graph order.

    Args:
        pattern: A rule with a tree; for others nothing is found.
        graph_module: Where to look.
        around: Only places that involve this node.
        covered: Names of the nodes of each whole match; what fits inside one is left out.
        most: How many to return.
    """
    tree = pattern.tree
    if tree is None or type(pattern).match is not Pattern.match:
        return ()
    roots = _likely_roots(tree, graph_module, around)
    found = [item for root in roots for item in _at(pattern, tree, root, around)]
    if not found and around is None:
        found = _one_call_away(pattern, tree, graph_module)
    ranked = sorted(found, key=lambda item: item[0])
    return _without_repetition([miss for _, miss in ranked], covered)[:most]


def refused_site(pattern: Pattern, match: PatternMatch) -> NearMiss:
    """Returns a match of the whole tree that was declined, as a near miss."""
    assert match.refusal is not None, "only a declined match has a reason"
    names = tuple(node.name for node in match.nodes)
    difference = _of_refusal(match, match.refusal)
    return NearMiss(pattern.name, match.root.name, names, (difference,), source_line(match.root))


def whole_matches(
    pattern: Pattern, graph_module: GraphModule, candidates: Sequence[Node]
) -> Iterator[PatternMatch]:
    """Yields every match of the whole tree, those that were declined included."""
    for root in candidates:
        found = found_at(pattern, root, graph_module)
        if found is not None:
            yield found


def _of_refusal(match: PatternMatch, refusal: Refusal) -> Difference:
    used = also_used(match)
    node = refusal.node or match.root
    if used is not None and used.reason == refusal.reason:
        consumed = set(match.nodes)
        readers = [f"%{user.name}" for user in node.users if user not in consumed]
        cure = (
            "take the other reader away, or name the capture in the pattern's `outputs` and let "
            "replace() return a dict"
        )
        expected = "to be read only inside the match"
        return differ("readers", node, expected, f"also used by {', '.join(readers)}", cure)
    if is_fault(refusal.reason):
        return differ("fault", node, *fault(match.pattern.name, refusal.reason))
    kind: Aspect = "training" if "training" in refusal.reason else "check"
    expected = f"check() of {match.pattern.name} to agree"
    return differ(kind, node, expected, refusal.reason, "change what the reason names")


def _at(
    pattern: Pattern, tree: Tree, root: Node, around: Node | None
) -> Iterator[tuple[_Rank, NearMiss]]:
    best: tuple[_Rank, NearMiss] | None = None
    for attempt in _told_attempts(pattern, tree, root):
        touched = {item.node for item in attempt.differences} | {n.name for n in attempt.fitting}
        if not attempt.fitting and root is not around:
            continue
        if around is not None and around.name not in touched:
            continue
        rank = _rank(attempt, root)
        if best is None or rank < best[0]:
            names = tuple(node.name for node in sorted(dict.fromkeys(attempt.fitting)))
            miss = NearMiss(pattern.name, root.name, names, attempt.differences, source_line(root))
            best = (rank, miss)
    if best is not None:
        yield best


def _one_call_away(
    pattern: Pattern, tree: Tree, graph_module: GraphModule
) -> list[tuple[_Rank, NearMiss]]:
    """Returns the calls that would be a whole match if they ran something else.

    That is all there is to say of a tree of one node when no node runs what it names.
    """
    found = [item for root in _calls(graph_module) for item in _at(pattern, tree, root, root)]
    alone = [item for item in found if len(item[1].differences) == 1]
    return [((rank[0] + _distance(miss.first), *rank[1:]), miss) for rank, miss in alone]


def _distance(difference: Difference) -> int:
    """Ranks single calls: the right one in a wrong state, one spelled otherwise, any other."""
    if difference.aspect not in ("target", "value"):
        return 0
    return 1 if difference.found in difference.cure else 2


def _told_attempts(pattern: Pattern, tree: Tree, root: Node) -> list[Attempt]:
    """Returns the ways to fit, or the mistake in a condition of the tree that keeps them back."""
    try:
        return list(_attempts(tree, root))
    except Exception as error:  # noqa: BLE001  # a condition may fail in any way; it is told
        expected = f"every where= in the tree of {pattern.name} to answer yes or no"
        found, cure = f"one that raised {told(error)}", "correct the condition at that line"
        return [
            Attempt(differences=(differ("fault", root, expected, found, cure),), fitting=(root,))
        ]


def _attempts(tree: Tree, root: Node) -> Iterator[Attempt]:
    """Yields the ways to fit that differ; nothing where the whole tree fits."""
    for budget in range(1, _MOST_DIFFERENCES + 1):
        start = Attempt(budget=budget)
        for attempt, _ in islice(near(tree, root, start, Place(root)), _MOST_WAYS):
            if not attempt.differences:
                return
            if len(attempt.differences) == budget:
                yield attempt


def _rank(attempt: Attempt, root: Node) -> _Rank:
    """A difference weighs as much as two nodes that fit."""
    differences = len(attempt.differences)
    likelihood = sum(_LIKELIHOOD.get(item.aspect, 1) for item in attempt.differences)
    return (2 * differences - len(attempt.fitting), differences, likelihood, root)


def _without_repetition(
    misses: list[NearMiss], covered: Sequence[Sequence[str]]
) -> tuple[NearMiss, ...]:
    """Leaves out what fits inside a whole match, or inside a better miss before it."""
    kept: list[NearMiss] = []
    known = [set(names) for names in covered]
    faults = [miss for miss in misses if miss.first.aspect == "fault"]
    for miss in misses:
        if miss in faults[1:]:
            continue
        if not any(set(miss.matched) <= other for other in known):
            kept.append(miss)
            known.append(set(miss.matched))
    return tuple(kept)


def _likely_roots(tree: Tree, graph_module: GraphModule, around: Node | None) -> list[Node]:
    """Returns the calls from which something that ``tree`` names is not far."""
    targets = tuple(targets_in(tree))
    depth = len(targets) + 1
    calls = _calls(graph_module)
    start = (
        [around]
        if around is not None
        else [node for node in calls if any(is_call(node, target) for target in targets)]
    )
    if not targets and around is None:
        return calls
    reached = dict.fromkeys(start)
    frontier = start
    for _ in range(min(depth, 8)):
        frontier = [
            user
            for node in frontier
            for user in node.users
            if user not in reached and user.op.startswith("call_")
        ]
        reached.update(dict.fromkeys(frontier))
    return sorted(node for node in reached if node.op.startswith("call_"))


def _calls(graph_module: GraphModule) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.op.startswith("call_")]
