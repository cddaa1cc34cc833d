"""Measures what a lowered module adds to a call of its engine, beside eager.

    python -m benchmarks.lowered_overhead [--seconds 10] [--output FILE]

The engine returns at once what it computed before, so that what remains is binding the arguments,
the guards and the structure of the outputs. Eager, the lowered module and the bare engine take
turns in blocks.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from embedl_deploy.cli.baselines import eager, on_inputs
from embedl_deploy.deployment import lower
from embedl_deploy.engines.recording import RecordingEngine
from embedl_deploy.files import write_aside
from embedl_deploy.tuning.machine import JsonValue, machine_info
from embedl_deploy.tuning.measure import measure_in_rotation

RESULTS = Path(__file__).parent / "results"
EAGER, LOWERED, ENGINE = "eager", "lowered module", "engine alone"
CALLS = 200
"""In a row; one call is too short for the clock."""


class OneTensor(nn.Module):
    """Takes a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x + 1."""
        return x + 1


class Many(nn.Module):
    """Takes tensors and as many scalars."""

    def forward(self, tensors: list[Tensor], **scalars: float) -> list[Tensor]:
        """Returns each tensor times its scalar."""
        return [tensor * scalar for tensor, scalar in zip(tensors, scalars.values(), strict=True)]


class Immediate(RecordingEngine):
    """Computes once, and returns that again."""

    _first: object = None

    def _infer(self, *args: object, **kwargs: object) -> object:
        if self._first is None:
            self._first = super()._infer(*args, **kwargs)
        return self._first


@dataclass(frozen=True)
class Case:
    """One kind of inputs."""

    name: str
    module: nn.Module
    args: tuple[object, ...]
    kwargs: dict[str, object]
    bar_us: float


CASES = (
    Case("one tensor", OneTensor(), (torch.ones(4, 3),), {}, 10.0),
    Case(
        "20 tensors and 20 scalars",
        Many(),
        ([torch.ones(4, 3) for _ in range(20)],),
        {f"s{index}": index + 0.5 for index in range(20)},
        30.0,
    ),
)


def main() -> None:
    """Measures the cases, prints them and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring per case")
    parser.add_argument("--output", type=Path, default=RESULTS / "lowered_overhead.json")
    options = parser.parse_args()
    cases = {case.name: run_case(case, options.seconds) for case in CASES}
    Console().print_json(data=cases)
    content = {"machine": machine_info(), "cases": cases}
    write_aside(options.output, (json.dumps(content, indent=2) + "\n").encode())


def run_case(case: Case, seconds: float) -> dict[str, JsonValue]:
    """Returns the microseconds per call of each candidate, and what the module itself takes."""
    model = case.module.eval()
    lowered = lower(model, case.args, case.kwargs, engines=Immediate())
    (slot,) = lowered.assembly.slots.values()
    tensors = tuple(leaf for leaf in pytree.tree_leaves(case.args) if isinstance(leaf, Tensor))
    runners = {
        EAGER: in_blocks(on_inputs(eager(model), case.args, case.kwargs)),
        LOWERED: in_blocks(on_inputs(lowered, case.args, case.kwargs)),
        ENGINE: in_blocks(lambda: slot.engine.infer(*tensors)),
    }
    with torch.no_grad():
        timings = measure_in_rotation(runners, max_rounds=1000, budget_s=seconds)
    us = {name: timing.median_ms * 1e3 for name, timing in timings.items()}
    own = us[LOWERED] - us[ENGINE]
    return {
        "median_us": dict(us),
        "own_us": own,
        "bar_us": case.bar_us,
        "under_the_bar": own < case.bar_us,
    }


def in_blocks(call: Callable[[], object]) -> Callable[[int], list[float]]:
    """Returns a runner whose every sample is the mean of many calls in a row."""

    def run(count: int) -> list[float]:
        seconds: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            seconds.append((time.perf_counter() - start) / CALLS)
        return seconds

    return run


if __name__ == "__main__":
    main()
