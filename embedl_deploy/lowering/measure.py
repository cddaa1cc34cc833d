"""Compares candidates for a subgraph: how far off they are, how long they take."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 10
_FEWEST = 3
_HOPELESS = 1.5
_CLEARLY = 1.03
_MIN_ROUNDS = 3
_MAX_ROUNDS = 30


@dataclass(frozen=True)
class Fidelity:
    """How far outputs are from the reference."""

    relative_error: float
    """‖output - reference‖ / ‖reference‖, the largest over all outputs; inf for another shape."""

    cosine: float
    """The smallest cosine between an output and its reference, from -1 to 1."""


@dataclass(frozen=True)
class CallTime:
    """What a call took."""

    median_ms: float
    spread_ms: float
    """90th minus 10th percentile."""


def fidelity_of(outputs: Sequence[object], references: Sequence[object]) -> Fidelity:
    """Returns how far ``outputs`` are from ``references``.

    Of integers and booleans the error is the share of elements that differ; a complex number
    counts as two.
    """
    worst, least = 0.0, 1.0
    for output, reference in zip(outputs, references, strict=True):
        if not isinstance(output, Tensor) or not isinstance(reference, Tensor):
            if output != reference:
                return Fidelity(float("inf"), 0.0)
            continue
        error, cosine = _distance(output, reference)
        # A comparison with NaN is false either way: "not smaller" keeps it.
        worst = error if not error <= worst else worst
        least = cosine if not cosine >= least else least
    return Fidelity(worst, least)


def _distance(output: Tensor, reference: Tensor) -> tuple[float, float]:
    if output.shape != reference.shape or output.dtype is not reference.dtype:
        return float("inf"), 0.0
    if not reference.numel():
        return 0.0, 1.0
    if reference.is_complex():
        # Conjugates are lazy, and a view of them as real numbers is refused.
        one, two = (torch.view_as_real(v.detach().resolve_conj()) for v in (output, reference))
        return _distance(one, two)
    if not reference.dtype.is_floating_point:
        differing = float((output != reference).double().mean())
        return differing, 1.0 - differing
    one, two = output.detach().double().flatten(), reference.detach().double().flatten()
    if torch.equal(one, two):
        return 0.0, 1.0
    # Masks hold infinities: where both agree on one it says nothing about the error.
    both = (one == two) & two.isinf()
    one, two = one.masked_fill(both, 0.0), two.masked_fill(both, 0.0)
    norm, apart = _norm(two), _norm(one - two)
    error = apart / norm if norm else apart
    scale = _norm(one) * norm
    return error, float(one @ two) / scale if scale else 0.0


def _norm(value: Tensor) -> float:
    return float(value.square().sum().sqrt())


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], budget_s: float
) -> dict[str, CallTime]:
    """Times each call in blocks whose order rotates, so that all share the machine's mood.

    Blocks have 10 calls, 3 at least where 10 would not fit the budget, after one that warms up.
    Rounds end with the budget, or when one call was ahead of each other in every round. A call
    that is more than one and a half times as slow as the fastest is not timed again: its figures
    rest on fewer blocks.
    """
    names = list(calls)
    blocks: dict[str, list[list[float]]] = {name: [] for name in names}
    once = sum(min(_block(calls[name], 2)) for name in names)
    block = max(_FEWEST, min(_BLOCK, int(budget_s / (_MIN_ROUNDS * once)))) if once else _BLOCK
    start = time.perf_counter()
    for done in range(_MAX_ROUNDS):
        spent = time.perf_counter() - start > budget_s
        if done >= _MIN_ROUNDS and (spent or _is_decided([blocks[name] for name in names])):
            break
        shift = done % len(names)
        order = names[shift:] + names[:shift]
        for name in reversed(order) if done % 2 else order:
            blocks[name].append(_block(calls[name], 1 + block)[1:])
        least = {name: min(map(min, blocks[name])) for name in names}
        names = [name for name in names if least[name] <= _HOPELESS * min(least.values())]
    return {name: _summary([s for one in found for s in one]) for name, found in blocks.items()}


def _is_decided(contenders: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Tells whether one call was faster than each other by a clear margin in every round."""
    rounds = [[statistics.median(block) for block in one] for one in zip(*contenders, strict=True)]
    leader = min(range(len(contenders)), key=lambda index: sum(one[index] for one in rounds))
    return all(
        value >= _CLEARLY * one[leader]
        for one in rounds
        for index, value in enumerate(one)
        if index != leader
    )


def _block(call: Callable[[], object], count: int) -> list[float]:
    seconds: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        _synchronise()
        seconds.append(time.perf_counter() - start)
    return seconds


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _summary(seconds: Sequence[float]) -> CallTime:
    ordered = sorted(value * 1e3 for value in seconds)
    last = len(ordered) - 1
    spread = ordered[round(0.9 * last)] - ordered[round(0.1 * last)]
    return CallTime(statistics.median(ordered), spread)
