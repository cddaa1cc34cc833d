"""Measures the latency of several callables fairly: rotating blocks, medians, ratios."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from embedl_deploy.tuning.machine import JsonValue

BlockRunner = Callable[[int], Sequence[float]]
"""Makes that many calls in a row and returns the seconds that each took."""

BLOCK = 20


@dataclass(frozen=True)
class Timing:
    """What the calls of one candidate took."""

    median_ms: float
    """The figure to compare."""

    p10_ms: float
    p90_ms: float
    calls: int

    block_medians_ms: tuple[float, ...] = ()
    """The median of each round's block, in the order of the rounds."""

    def as_json(self) -> dict[str, JsonValue]:
        found = asdict(self)
        del found["block_medians_ms"]
        return found


def timed(call: Callable[[], object], before: Callable[[], object] = lambda: None) -> BlockRunner:
    """Returns a runner that times ``call`` in this process, each time after ``before``, untimed."""

    def run_block(count: int) -> list[float]:
        seconds: list[float] = []
        for _ in range(count):
            before()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    return run_block


def measure_in_rotation(
    runners: Mapping[str, BlockRunner],
    *,
    block: int = BLOCK,
    min_rounds: int = 3,
    max_rounds: int = 30,
    budget_s: float = 60.0,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, Timing]:
    """Times candidates in blocks of calls whose order rotates from round to round.

    A block keeps a candidate's code and weights in the caches, as in use; rotating the order, and
    reversing it in every other round, spreads whatever else the machine does over all of them,
    the threads that the candidate before left spinning too. Calls that alternate one by one give
    another ratio (for int8 ResNet-50 against eager 5.3 instead of 6.5 to 6.9).

    Args:
        runners: What to time, by name; each is first run for a quarter of a block, uncounted.
        block: Calls in a row per candidate and round.
        min_rounds: Rounds made even when the budget is spent.
        max_rounds: Rounds after which to stop.
        budget_s: Seconds after which no further round starts.
        on_round: Called with the number of rounds done, for progress.

    Returns:
        One timing per name, in the order given.
    """
    if block < 1 or not 1 <= min_rounds <= max_rounds:
        raise ValueError(
            "need block >= 1 and 1 <= min_rounds <= max_rounds, "
            f"got block={block}, min_rounds={min_rounds}, max_rounds={max_rounds}"
        )
    names = list(runners)
    for name in names:
        runners[name](max(1, block // 4))
    blocks: dict[str, list[Sequence[float]]] = {name: [] for name in names}
    start = time.perf_counter()
    for round_index in range(max_rounds):
        if round_index >= min_rounds and time.perf_counter() - start > budget_s:
            break
        shift = round_index % len(names) if names else 0
        order = names[shift:] + names[:shift]
        for name in reversed(order) if round_index % 2 else order:
            blocks[name].append(runners[name](block))
        if on_round is not None:
            on_round(round_index + 1)
    return {name: summarize(values) for name, values in blocks.items()}


def summarize(blocks: Sequence[Sequence[float]]) -> Timing:
    """Returns median and spread of call durations, given in seconds block by block."""
    ordered = sorted(value * 1e3 for block in blocks for value in block)
    if not ordered:
        raise ValueError("need the duration of at least one call, got none")
    last = len(ordered) - 1
    return Timing(
        median_ms=statistics.median(ordered),
        p10_ms=ordered[round(0.1 * last)],
        p90_ms=ordered[round(0.9 * last)],
        calls=len(ordered),
        block_medians_ms=tuple(1e3 * statistics.median(block) for block in blocks),
    )


def speedups(timings: Mapping[str, Timing], over: str) -> dict[str, float]:
    """Returns how many times faster than ``over`` each candidate is (ratio of medians)."""
    return {name: timings[over].median_ms / timing.median_ms for name, timing in timings.items()}


def times_slower(timing: Timing, than: Timing) -> float:
    """Returns the median over the rounds of the ratio of two candidates' block medians.

    A phase in which the machine is slow reaches both blocks of a round, and leaves their ratio:
    this ratio moves less from run to run than that of the two medians.
    """
    pairs = zip(timing.block_medians_ms, than.block_medians_ms, strict=True)
    return statistics.median(one / other for one, other in pairs)
