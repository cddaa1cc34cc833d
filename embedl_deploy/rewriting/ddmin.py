"""Delta debugging: the smallest part of a list that still fails."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Returns a part of ``items`` that fails and of which no item can be left out.

    Items that fail only together are found together. Takes about 2·log2(n) calls of ``fails``
    for one guilty item among n, at most n² + 3n.

    Args:
        items: What to choose from; all of it must fail.
        fails: Tells whether a part, in the order of ``items``, fails; called once per part.

    Source:
        Zeller and Hildebrandt 2002, Simplifying and Isolating Failure-Inducing Input, figure 5,
        https://doi.org/10.1109/32.988498
    """
    known: dict[tuple[int, ...], bool] = {}

    def test(part: tuple[int, ...]) -> bool:
        if part not in known:
            known[part] = fails(tuple(items[index] for index in part))
        return known[part]

    current = tuple(range(len(items)))
    pieces = 2
    while len(current) >= 2:
        smaller = _reduced(current, pieces, test)
        if smaller is None:
            if pieces >= len(current):
                break
            pieces = min(len(current), 2 * pieces)
            continue
        current, pieces = smaller
    return tuple(items[index] for index in current)


def _reduced(
    current: tuple[int, ...], pieces: int, test: Callable[[tuple[int, ...]], bool]
) -> tuple[tuple[int, ...], int] | None:
    """Returns a smaller part that fails and into how many pieces to cut it, None if none does."""
    bounds = [len(current) * i // pieces for i in range(pieces + 1)]
    chunks = [current[a:b] for a, b in pairwise(bounds) if a < b]
    for chunk in chunks:
        if len(chunk) < len(current) and test(chunk):
            return chunk, 2
    for chunk in chunks:
        gone = set(chunk)
        rest = tuple(index for index in current if index not in gone)
        if rest and len(rest) < len(current) and test(rest):
            return rest, max(pieces - 1, 2)
    return None
