"""Walks along a frontier until a choice passes its check."""

from collections.abc import Callable, Sequence


def first_passing(count: int, start: int, passes: Callable[[int], bool]) -> int | None:
    """Returns a position that passes, close behind the last one that does not.

    Positions are ordered from what is wanted most to what passes most easily. From ``start`` the
    steps double until one passes; then the gap to the last that failed is halved. Where passing
    is monotonic the position found is the first that passes; otherwise it is one that passes.

    Args:
        count: How many positions there are.
        start: The first to check.
        passes: Checks one; called at most once for each, about 2 · log₂(count) times.

    Returns:
        None if the last position fails too.
    """
    failed, step, position = start - 1, 1, start
    while not passes(position):
        if position == count - 1:
            return None
        failed, position = position, min(position + step, count - 1)
        step *= 2
    while position - failed > 1:
        middle = (failed + position) // 2
        if passes(middle):
            position = middle
        else:
            failed = middle
    return position


def thinned(values: Sequence[float], count: int) -> list[int]:
    """Returns the first position in each of ``count`` equal steps of a falling sequence.

    The first and the last position are always among them.
    """
    if not values:
        return []
    highest, lowest = values[0], values[-1]
    step = (highest - lowest) / count
    kept = {len(values) - 1: None}
    last_bin = -1
    for position, value in enumerate(values):
        found = int((highest - value) / step) if step > 0.0 else 0
        if found > last_bin:
            kept[position], last_bin = None, found
    return sorted(kept)
