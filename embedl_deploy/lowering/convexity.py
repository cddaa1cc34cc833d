"""Groups the vertices of a labelled DAG into convex groups that order among themselves."""

from collections import deque
from collections.abc import Sequence

_SEARCH_PER_EDGE = 16
"""Merging may look at this many edges per edge of the graph: the whole stays linear."""

_MERGE_BITS = 1 << 28
"""Reachability sets larger than this (32 MiB) are not built; groups then stay as staged."""


def convex_groups(labels: Sequence[str | None], reads: Sequence[Sequence[int]]) -> list[int]:
    """Returns the group of each vertex, -1 for a vertex without a label.

    All vertices of a group share a label, every group is convex (no path leaves it and comes
    back), and groups and unlabelled vertices together still form a DAG, so that each group can
    run as one call. Groups are numbered in an order in which they can run. No two groups of one
    label can be merged without breaking this, unless the graph is so large that looking for such
    pairs would not be linear.

    Args:
        labels: The label of each vertex; vertices are numbered in topological order.
        reads: The vertices that each vertex reads.
    """
    groups = _number_stages(labels, _stages(labels, reads))
    quotient = _Quotient(groups, reads)
    if quotient.group_count < 2:
        return groups
    home = list(range(quotient.group_count))
    if quotient.group_count * len(quotient.reads) <= _MERGE_BITS:
        pairs = zip(groups, labels, strict=True)
        home = _merge_pairs(quotient, {group: label for group, label in pairs if label is not None})
    order = [group for group in quotient.order if group < quotient.group_count]
    number = {group: position for position, group in enumerate(order)}
    return [number[home[group]] if group >= 0 else -1 for group in groups]


def _stages(labels: Sequence[str | None], reads: Sequence[Sequence[int]]) -> list[int]:
    """Returns for each vertex how many groups a path must have left before it, at most.

    Along an edge the stage grows by one where the edge leaves a labelled vertex for another
    label, and never falls. So a path that leaves (label, stage) cannot come back to it.
    """
    stages = [0] * len(labels)
    for vertex, label in enumerate(labels):
        stage = 0
        for read in reads[vertex]:
            read_label = labels[read]
            least = stages[read]
            if read_label is not None and read_label != label:
                least += 1
            if least > stage:
                stage = least
        stages[vertex] = stage
    return stages


def _number_stages(labels: Sequence[str | None], stages: Sequence[int]) -> list[int]:
    known: dict[tuple[str, int], int] = {}
    return [
        -1 if label is None else known.setdefault((label, stage), len(known))
        for label, stage in zip(labels, stages, strict=True)
    ]


class _Quotient:
    """The DAG whose vertices are the groups and the unlabelled vertices.

    Groups keep their numbers; the unlabelled vertex v is number ``group_count + v``.
    """

    def __init__(self, groups: Sequence[int], reads: Sequence[Sequence[int]]) -> None:
        self.group_count = max(groups, default=-1) + 1
        self.edges = 0
        self.reads: dict[int, dict[int, None]] = {}
        self.readers: dict[int, dict[int, None]] = {}
        self.order: list[int] = []
        number = [
            group if group >= 0 else self.group_count + vertex
            for vertex, group in enumerate(groups)
        ]
        for vertex, here in enumerate(number):
            into = self.reads.setdefault(here, {})
            for read in reads[vertex]:
                there = number[read]
                if there != here:
                    into[there] = None
        for here, into in self.reads.items():
            self.edges += len(into)
            for there in into:
                self.readers.setdefault(there, {})[here] = None
        self.sort()

    def sort(self) -> None:
        """Puts the vertices in an order in which they can run."""
        waiting = {here: len(into) for here, into in self.reads.items()}
        ready = deque(here for here, count in waiting.items() if not count)
        order: list[int] = []
        while ready:
            here = ready.popleft()
            order.append(here)
            for reader in self.readers.get(here, ()):
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        assert len(order) == len(self.reads), "groups depend on each other in a circle"
        self.order = order

    def reached_from(self) -> list[int]:
        """Returns for each group, as bits, the groups with a path to it through a third vertex."""
        before: dict[int, int] = {}
        through: list[int] = [0] * self.group_count
        for here in self.order:
            direct = indirect = 0
            for there in self.reads[here]:
                indirect |= before[there]
                if there < self.group_count:
                    direct |= 1 << there
            before[here] = direct | indirect
            if here < self.group_count:
                through[here] = indirect
        return through

    def indirect_path(self, first: int, last: int) -> tuple[bool, int]:
        """Tells whether a path leads through a third vertex, and how many edges it looked at."""
        seen = {first, last}
        stack = [here for here in self.readers.get(first, ()) if here != last]
        looked = len(stack)
        while stack:
            here = stack.pop()
            if here in seen:
                continue
            seen.add(here)
            for reader in self.readers.get(here, ()):
                looked += 1
                if reader == last:
                    return True, looked
                stack.append(reader)
        return False, looked

    def merge(self, kept: int, gone: int) -> None:
        """Makes ``gone`` part of ``kept``."""
        for there in self.reads.pop(gone):
            del self.readers[there][gone]
            if there != kept:
                self.reads[kept][there] = None
                self.readers[there][kept] = None
        for reader in self.readers.pop(gone, {}):
            del self.reads[reader][gone]
            if reader != kept:
                self.reads[reader][kept] = None
                self.readers.setdefault(kept, {})[reader] = None


def _merge_pairs(quotient: _Quotient, label_of: dict[int, str]) -> list[int]:
    """Merges groups of one label until no pair is left; returns where each group went."""
    budget = _SEARCH_PER_EDGE * (quotient.edges + 1024)
    home = list(range(quotient.group_count))
    found = True
    while found and budget > 0:
        found = False
        for kept, gone in _candidates(quotient, label_of):
            kept, gone = _home(home, kept), _home(home, gone)
            if kept == gone or budget <= 0:
                continue
            forward, looked = quotient.indirect_path(kept, gone)
            budget -= looked + 1
            if forward:
                continue
            backward, looked = quotient.indirect_path(gone, kept)
            budget -= looked + 1
            if not backward:
                quotient.merge(kept, gone)
                home[gone] = kept
                found = True
        if found:
            quotient.sort()
            budget -= quotient.edges
    return [_home(home, group) for group in range(quotient.group_count)]


def _home(home: list[int], group: int) -> int:
    while home[group] != group:
        group = home[group]
    return group


def _candidates(quotient: _Quotient, label_of: dict[int, str]) -> list[tuple[int, int]]:
    """Returns pairs of one label with no path through a third vertex, as the quotient stands."""
    through = quotient.reached_from()
    by_label: dict[str, list[int]] = {}
    for group in quotient.order:
        if group < quotient.group_count:
            by_label.setdefault(label_of[group], []).append(group)
    pairs: list[tuple[int, int]] = []
    for members in by_label.values():
        earlier = 0
        for member in members:
            free = earlier & ~through[member]
            earlier |= 1 << member
            while free:
                lowest = free & -free
                pairs.append((lowest.bit_length() - 1, member))
                free ^= lowest
    return pairs
