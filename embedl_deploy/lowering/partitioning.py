"""Cuts a graph into convex subgraphs, each for one engine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush

from torch import Tensor
from torch.fx import Graph, Node

from embedl_deploy.lowering.convexity import convex_groups
from embedl_deploy.lowering.units import Units, units_of

_FOLD_ROUNDS = 8
"""Folding an island can make another one; after this many rounds what is left stays."""

_MATRIX_WORK = ("conv", "linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "scaled_dot_product",
                "lstm", "gru", "_scaled_mm", "_int_mm", "FusedConv", "FusedLinear")  # fmt: skip


@dataclass(frozen=True)
class Subgraph:
    """Nodes that one engine runs in one call."""

    name: str
    """``subgraph_0``, ``subgraph_1``, … in the order in which they run."""

    engine: str
    """The label of the engine."""

    nodes: tuple[Node, ...]
    """The nodes in graph order."""


@dataclass(frozen=True)
class Partition:
    """A whole graph, cut."""

    steps: tuple[Node | Subgraph, ...]
    """What runs, in order: subgraphs, and single nodes that run eager."""

    @property
    def subgraphs(self) -> tuple[Subgraph, ...]:
        return tuple(step for step in self.steps if isinstance(step, Subgraph))

    @property
    def eager_nodes(self) -> tuple[Node, ...]:
        return tuple(step for step in self.steps if isinstance(step, Node))


def partition(
    graph: Graph,
    takers: Mapping[Node, Sequence[str]],
    *,
    min_nodes: int = 1,
    atomic: Iterable[Sequence[Node]] = (),
) -> Partition:
    """Cuts ``graph`` into maximal convex subgraphs.

    A node goes to the first of its takers; nodes that must stay together (a call and its
    ``getitem``s, an atomic group) to the first that takes all of them; nodes that write into
    memory in place, and nodes that nobody takes, run eager, in the order the graph gives them.
    Then small subgraphs are folded: one without matrix work into a neighbour that takes it too,
    one of fewer than ``min_nodes`` nodes into a neighbour or, if none takes it, into eager.

    Args:
        graph: The graph; its order is kept wherever it can be.
        takers: The engines that take each node, the preferred one first.
        min_nodes: The fewest nodes worth a call of their own.
        atomic: Groups of nodes that no cut may divide.

    Raises:
        ValueError: An atomic group cannot run in one piece, or ``min_nodes`` is below 1.
    """
    if min_nodes < 1:
        raise ValueError(f"min_nodes must be 1 or more, got {min_nodes}")
    units = units_of(graph, atomic)
    choices = [_choices(nodes, takers, units.writers) for nodes in units.nodes]
    labels: list[str | None] = [choice[0] if choice else None for choice in choices]
    groups = convex_groups(labels, units.reads)
    for _ in range(_FOLD_ROUNDS):
        if not _fold(units, groups, labels, choices, min_nodes):
            break
        groups = convex_groups(labels, units.reads)
    return _assemble(graph, units, groups, labels)


def without(partition: Partition, names: Sequence[str]) -> Partition:
    """Returns ``partition`` with the nodes of the named subgraphs on their own."""
    if not names:
        return partition
    steps: list[Node | Subgraph] = []
    for step in partition.steps:
        if isinstance(step, Subgraph) and step.name in names:
            steps.extend(step.nodes)
        else:
            steps.append(step)
    return Partition(tuple(steps))


def _choices(
    nodes: Sequence[Node], takers: Mapping[Node, Sequence[str]], writers: frozenset[Node]
) -> Sequence[str]:
    """Returns the engines that take all of a unit."""
    first = takers.get(nodes[0], ())
    if not first or not _yields_tensors(nodes) or not writers.isdisjoint(nodes):
        return ()
    if len(nodes) == 1:
        return first
    rest = [takers.get(node, ()) for node in nodes[1:]]
    return [label for label in first if all(label in taken for taken in rest)]


def _yields_tensors(nodes: Sequence[Node]) -> bool:
    """Tells whether what leaves the nodes is tensors: no engine hands on a tuple or a number."""
    for node in nodes:
        value = node.meta.get("val")
        if value is None or isinstance(value, Tensor):
            continue
        if any(user not in nodes for user in node.users):
            return False
    return True


def _fold(
    units: Units,
    groups: Sequence[int],
    labels: list[str | None],
    choices: Sequence[Sequence[str]],
    min_nodes: int,
) -> bool:
    """Gives the units of small groups another label; tells whether it changed any."""
    members: dict[int, list[int]] = {}
    for unit, group in enumerate(groups):
        if group >= 0:
            members.setdefault(group, []).append(unit)
    small = [
        group
        for group, inside in members.items()
        if (min_nodes > 1 and _size(units, inside) < min_nodes)
        or (len(members) > 1 and not _has_matrix_work(units, inside))
    ]
    if not small:
        return False
    neighbours = _neighbours(units, groups, labels)
    changed = False
    moved: set[int] = set()
    for group in small:
        inside = members[group]
        if moved & set(neighbours[group]):
            continue
        target = _taker(inside, labels, choices, neighbours[group].values())
        if target is None and (min_nodes <= 1 or _size(units, inside) >= min_nodes):
            continue
        for unit in inside:
            labels[unit] = target
        moved.add(group)
        changed = True
    return changed


def _neighbours(
    units: Units, groups: Sequence[int], labels: Sequence[str | None]
) -> dict[int, dict[int, str | None]]:
    """Returns for each group the groups beside it and their labels."""
    found: dict[int, dict[int, str | None]] = {group: {} for group in groups if group >= 0}
    for unit, into in enumerate(units.reads):
        for read in into:
            here, there = groups[unit], groups[read]
            if here >= 0 and there >= 0 and here != there:
                found[here][there] = labels[read]
                found[there][here] = labels[unit]
    return found


def _taker(
    inside: Sequence[int],
    labels: Sequence[str | None],
    choices: Sequence[Sequence[str]],
    neighbours: Iterable[str | None],
) -> str | None:
    """Returns the label of a neighbour that takes every unit, preferring the engines' order."""
    beside = dict.fromkeys(neighbours)
    for label in choices[inside[0]]:
        if label == labels[inside[0]] or label not in beside:
            continue
        if all(label in choices[unit] for unit in inside):
            return label
    return None


def _size(units: Units, inside: Sequence[int]) -> int:
    return sum(len(units.nodes[unit]) for unit in inside)


def _has_matrix_work(units: Units, inside: Sequence[int]) -> bool:
    return any(_is_matrix_work(node.target) for unit in inside for node in units.nodes[unit])


@lru_cache(maxsize=4096)
def _is_matrix_work(target: object) -> bool:
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return any(work in name for work in _MATRIX_WORK)


def _assemble(
    graph: Graph, units: Units, groups: Sequence[int], labels: Sequence[str | None]
) -> Partition:
    """Orders groups and single nodes: each as early as the graph's own order has it."""
    place = {node: position for position, node in enumerate(graph.nodes)}
    inside: dict[int, list[int]] = {}
    for unit, group in enumerate(groups):
        inside.setdefault(group if group >= 0 else -unit - 1, []).append(unit)
    order = _schedule(units, groups, inside, place)
    steps: list[Node | Subgraph] = []
    count = 0
    for key in order:
        first, *others = inside[key]
        label = labels[first]
        nodes: Sequence[Node] = units.nodes[first]
        if others:
            every = (node for unit in inside[key] for node in units.nodes[unit])
            nodes = sorted(every, key=place.__getitem__)
        if label is None:
            steps.extend(nodes)
            continue
        steps.append(Subgraph(f"subgraph_{count}", label, tuple(nodes)))
        count += 1
    return Partition(tuple(steps))


def _schedule(
    units: Units,
    groups: Sequence[int],
    inside: Mapping[int, Sequence[int]],
    place: Mapping[Node, int],
) -> list[int]:
    """Returns groups (>= 0) and eager units (-unit - 1) in an order in which they can run."""
    readers = _readers(units, groups, inside)
    waiting = dict.fromkeys(inside, 0)
    for beyond in readers.values():
        for key in beyond:
            waiting[key] += 1
    first = {key: place[units.nodes[within[0]][0]] for key, within in inside.items()}
    ready = [(first[key], key) for key, count in waiting.items() if not count]
    heapify(ready)
    order: list[int] = []
    while ready:
        _, key = heappop(ready)
        order.append(key)
        for reader in readers[key]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heappush(ready, (first[reader], reader))
    assert len(order) == len(inside), "steps of the partition depend on each other in a circle"
    return order


def _readers(
    units: Units, groups: Sequence[int], keys: Iterable[int]
) -> dict[int, dict[int, None]]:
    home = [group if group >= 0 else -unit - 1 for unit, group in enumerate(groups)]
    readers: dict[int, dict[int, None]] = {key: {} for key in keys}
    for unit, into in enumerate(units.reads):
        for read in into:
            if home[read] != home[unit]:
                readers[home[read]][home[unit]] = None
    return readers
