"""Chooses what to quantize: the trade-off between what it saves and what it costs in error."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

STATES = 20_000
"""Undominated sums kept while groups are added, by default."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """Every choice that no other one beats in both saving and error.

    Ordered by saving, the largest first; errors fall along with it, to 0 at the end: the empty
    choice, or the items that cost nothing.
    """

    savings: tuple[float, ...]
    errors: tuple[float, ...]
    taken: NDArray[np.bool_]
    """Shape (choices, items)."""

    exact: bool
    """Whether all undominated sums were kept, so that nothing better exists."""

    def __len__(self) -> int:
        return len(self.savings)

    def choice(self, at: int) -> tuple[int, ...]:
        """Returns the positions of the items of one choice, in order."""
        return tuple(np.flatnonzero(self.taken[at]).tolist())

    def least_error(self, saving: float) -> int | None:
        """Returns the position with the least error that saves at least ``saving``, or None."""
        enough = [at for at, found in enumerate(self.savings) if found >= saving]
        return enough[-1] if enough else None

    def most_saving(self, error: float) -> int:
        """Returns the position that saves most with an error of at most ``error``."""
        return next(at for at, found in enumerate(self.errors) if found <= error)


def frontier(
    savings: Sequence[float], errors: Sequence[float], *, states: int = STATES
) -> Frontier:
    """Returns the undominated choices among all subsets of some items.

    Savings and errors add up. With S the chosen items, the frontier holds for every budget B the
    solution of both knapsack problems:

        minimise Σ error_i, i in S, so that Σ saving_i ≥ B
        maximise Σ saving_i, i in S, so that Σ error_i ≤ B

    Items are added one after another and dominated sums dropped, which is exact. Where more than
    ``states`` sums are left, one is kept in each of as many equal steps of saving, the one with
    the least error: what is found then saves at most (number of items) · (range of savings) /
    ``states`` less than the best choice with the same error.

    Args:
        savings: Of each item, any unit; items that save nothing are never chosen.
        errors: Of each item, ≥ 0, any unit.
        states: How many sums to keep.

    Source: Nemhauser, Ullmann 1969, Discrete Dynamic Programming and Capital Allocation
        (lists of undominated sums), https://doi.org/10.1287/mnsc.15.9.494
    """
    saving, error = (np.asarray(values, dtype=np.float64) for values in (savings, errors))
    _require_usable(saving, error)
    if states < 2:
        raise ValueError(f"states must be at least 2 (all and nothing), got {states}")
    wanted = np.flatnonzero(saving > 0.0)
    sums, costs, exact = np.zeros(1), np.zeros(1), True
    steps: list[tuple[Integers, NDArray[np.bool_]]] = []
    for item in wanted:
        count = len(sums)
        sums = np.concatenate([sums, sums + saving[item]])
        costs = np.concatenate([costs, costs + error[item]])
        kept = _undominated(sums, costs)
        if len(kept) > states:
            kept, exact = _thinned(kept, sums, states), False
        sums, costs = sums[kept], costs[kept]
        steps.append((kept % count, kept >= count))
    taken = _taken(len(saving), len(sums), wanted, steps)
    return Frontier(tuple(sums.tolist()), tuple(costs.tolist()), taken, exact)


def _require_usable(savings: Floats, errors: Floats) -> None:
    if savings.shape != errors.shape or savings.ndim != 1:
        raise ValueError(
            "need one saving and one error per item, got "
            f"{savings.shape} savings and {errors.shape} errors"
        )
    if not np.isfinite(savings).all() or not np.isfinite(errors).all():
        raise ValueError("savings and errors must be finite, got NaN or infinity among them")
    if (errors < 0.0).any():
        raise ValueError(f"errors must be at least 0, got {errors.min()}")


def _undominated(sums: Floats, costs: Floats) -> Integers:
    """Returns the positions of undominated sums, the largest saving first."""
    order = np.lexsort((costs, -sums))
    ordered = costs[order]
    least_before = np.minimum.accumulate(ordered)
    is_better = np.ones(len(order), dtype=np.bool_)
    is_better[1:] = ordered[1:] < least_before[:-1]
    return order[is_better]


def _thinned(kept: Integers, sums: Floats, states: int) -> Integers:
    """Returns one position per step of saving, the largest saving and the empty choice."""
    values = sums[kept]
    step = (values[0] - values[-1]) / (states - 1)
    bins = np.floor((values[0] - values) / step)
    # Within a step the last one has the least error; of the first step the largest is kept.
    is_last = np.append(bins[1:] != bins[:-1], True)
    is_last[0] = True
    return kept[is_last]


def _taken(
    items: int,
    choices: int,
    wanted: Integers,
    steps: Sequence[tuple[Integers, NDArray[np.bool_]]],
) -> NDArray[np.bool_]:
    """Returns which items each choice holds, followed back from the last step to the first."""
    taken = np.zeros((choices, items), dtype=np.bool_)
    at = np.arange(choices)
    for item, (before, is_taken) in zip(reversed(wanted.tolist()), reversed(steps), strict=True):
        taken[:, item] = is_taken[at]
        at = before[at]
    return taken
