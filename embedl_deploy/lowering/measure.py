"""Compares candidates for a subgraph: how far off they are, how long they take."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 10
_FEWEST = 3
_HOPELESS = 2.0
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

    Blocks have 10 calls, 3 at least where 10 would not fit the budget. A call that is more than
    twice as slow as the fastest is not timed again: its figures rest on fewer blocks.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    once = sum(min(_block(calls[name], 2)) for name in names)
    block = max(_FEWEST, min(_BLOCK, int(budget_s / (_MIN_ROUNDS * once)))) if once else _BLOCK
    start = time.perf_counter()
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.perf_counter() - start > budget_s:
            break
        shift = done % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name] += _block(calls[name], block)
        fastest = min(min(seconds[name]) for name in names)
        names = [name for name in names if min(seconds[name]) <= _HOPELESS * fastest]
    return {name: _summary(values) for name, values in seconds.items()}


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
