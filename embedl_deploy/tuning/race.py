"""Times candidates against eager, in turns."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from embedl_deploy.tuning.measure import BlockRunner, measure_in_rotation, timed
from embedl_deploy.tuning.sample import Sample, call
from embedl_deploy.tuning.tuned_graph import Latency

EAGER = "eager"

_AROUND = 1 << 17
"""Elements of what torch computes between two calls: enough for it to use all of its threads."""

_Z = 1.96
"""Standard deviations that hold 95 % of a normal distribution."""


def race(
    forwards: Mapping[str, Callable[..., object]],
    sample: Sample,
    device: torch.device,
    budget_s: float,
) -> dict[str, Latency]:
    """Times each callable on a sample, warmed up, in blocks of calls whose order rotates.

    Before each call torch computes something else, as a pipeline does around its modules. Its
    threads then wait busily for more, and an engine with threads of its own has to share the
    cores with them: on two cores OpenVINO takes 10.7 ms for what it does in 7.5 alone.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    around = torch.ones(_AROUND)
    runners = {
        name: _recorded(
            timed(_synchronous(forward, sample, device), lambda: around.add(1.0)), seconds[name]
        )
        for name, forward in forwards.items()
    }
    measure_in_rotation(runners, budget_s=budget_s)
    return {name: latency_of(values) for name, values in seconds.items()}


def latency_of(seconds: Sequence[float]) -> Latency:
    """Returns the median with an interval that holds the true one with 95 % confidence.

    The bounds are order statistics, of ranks n/2 ± 1.96 √n/2: nothing is assumed about how
    latencies are distributed.
    """
    ordered = sorted(value * 1e3 for value in seconds)
    count = len(ordered)
    reach = _Z * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - reach))
    high = min(count - 1, math.ceil(count / 2 + reach))
    return Latency(ordered[count // 2], ordered[low], ordered[high], count)


def is_faster(one: Latency, other: Latency) -> bool:
    """Tells whether the one median is smaller with confidence: the intervals do not overlap."""
    return one.high_ms < other.low_ms


def _recorded(runner: BlockRunner, seconds: list[float]) -> BlockRunner:
    warmed_up = False

    def run(count: int) -> Sequence[float]:
        nonlocal warmed_up
        found = runner(count)
        if warmed_up:
            seconds.extend(found)
        warmed_up = True
        return found

    return run


def _synchronous(
    forward: Callable[..., object], sample: Sample, device: torch.device
) -> Callable[[], object]:
    if device.type != "cuda":
        return lambda: call(forward, sample)

    def run() -> object:
        output = call(forward, sample)
        torch.cuda.synchronize(device)
        return output

    return run
