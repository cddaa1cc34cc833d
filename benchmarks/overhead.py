"""Measures what a tuned wrapper adds to a call, beside eager.

    python -m benchmarks.overhead [--seconds 20] [--output FILE]

The engine runs the graph as it is, so that nothing is gained: what remains is the wrapper. Eager,
the wrapper and the engine without a wrapper take turns in blocks.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from embedl_deploy.engines import EagerEngine
from embedl_deploy.files import write_aside
from embedl_deploy.tuning import MinLatencyStrategy, Module
from embedl_deploy.tuning.machine import JsonValue, machine_info

RESULTS = Path(__file__).parent / "results"
EAGER, TUNED, ENGINE = "eager", "tuned wrapper", "engine without wrapper"
CALLS = 100
"""In a row; one call is too short for the clock."""


class OneTensor(nn.Module):
    """Takes a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x + 1."""
        return x + 1


class ManyInputs(nn.Module):
    """Takes 20 tensors and 20 scalars, and uses two of them."""

    def forward(self, tensors: list[Tensor], scalars: dict[str, float]) -> Tensor:
        """Returns one of the tensors plus one of the scalars."""
        return tensors[0] + scalars["s3"]


@dataclass(frozen=True)
class Case:
    """One kind of inputs."""

    name: str
    module: nn.Module
    args: tuple[object, ...]
    bar_us: float


CASES = (
    Case("one tensor", OneTensor(), (torch.ones(4),), 10.0),
    Case(
        "20 tensors and 20 scalars",
        ManyInputs(),
        ([torch.ones(4) for _ in range(20)], {f"s{i}": float(i) for i in range(20)}),
        30.0,
    ),
)


def main() -> None:
    """Measures both cases and writes one file."""
    arguments = _arguments()
    cases: dict[str, JsonValue] = {}
    for case in CASES:
        cases[case.name] = found = measured(case, arguments.seconds)
        print(case.name, json.dumps(found))
    document: dict[str, JsonValue] = {"machine": machine_info(), "cases": cases}
    write_aside(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
    print(f"written to {arguments.output}")


def measured(case: Case, seconds: float) -> dict[str, JsonValue]:
    """Returns the microseconds of a call by each, and what the wrapper adds."""
    wrapped = tuned(case)
    found = in_turns(contenders(case, wrapped), seconds)
    if wrapped.eager_calls:
        raise RuntimeError(f"{wrapped.eager_calls} calls ran eager: the wrapper took none of them")
    to_engine = found[TUNED]["median"] - found[ENGINE]["median"]
    to_eager = found[TUNED]["median"] - found[EAGER]["median"]
    return {
        "microseconds": {name: {**values} for name, values in found.items()},
        "the wrapper adds to the engine, microseconds": round(to_engine, 2),
        "the wrapper and its engine add to eager, microseconds": round(to_eager, 2),
        "bars": {f"under {case.bar_us:g} microseconds beyond eager": to_eager < case.bar_us},
    }


def tuned(case: Case) -> Module:
    """Returns the module wrapped and tuned, its engine the graph as it is."""
    wrapped = Module(case.module.eval())
    wrapped(*case.args)
    wrapped.tune(strategy=MinLatencyStrategy([EagerEngine()], measure_s=0.0, keep_slower=True))
    return wrapped


def contenders(case: Case, wrapped: Module) -> dict[str, Callable[[], object]]:
    """Returns the module, its wrapper, and the engine given just the tensors that it takes."""
    (model,) = wrapped.tuning_core.models
    run, _ = model.assembly.runner(model.report.fallback_counts, fallback=True)
    leaves = cast("list[object]", pytree.tree_leaves(case.args))
    taken = [leaves[index] for index in model.assembly.core.signature.arguments]
    return {
        EAGER: lambda: case.module(*case.args),
        TUNED: lambda: wrapped(*case.args),
        ENGINE: lambda: run(*taken),
    }


def in_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, dict[str, float]]:
    """Returns median and quartiles of the microseconds of a call; the order of turns rotates."""
    names = list(calls)
    blocks: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    with torch.no_grad():
        for call in calls.values():
            _block(call)
        while time.perf_counter() < end or len(blocks[names[0]]) < 30:
            names = names[1:] + names[:1]
            for name in names:
                blocks[name].append(_block(calls[name]))
    return {name: _summary(values) for name, values in blocks.items()}


def _block(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) * 1e6 / CALLS


def _summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    found = {"median": median, "lower quartile": low, "upper quartile": high}
    return {**{name: round(value, 2) for name, value in found.items()}, "blocks": len(values)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="per kind of inputs")
    parser.add_argument("--output", type=Path, default=RESULTS / "overhead.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
