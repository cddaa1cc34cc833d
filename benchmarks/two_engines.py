"""Measures models that two engines share against each of these engines alone.

    python -m benchmarks.two_engines [--seconds 30] [--output FILE]

Each model has a convolutional stem in float32, which OpenVINO may run faster, and a head in
bfloat16, which OpenVINO does not take. All candidates of a model run in one process, in rotating
blocks of 20 calls.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.partition_picture import stem_and_head
from embedl_deploy.cli.baselines import eager, on_inputs
from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.deployment import lower
from embedl_deploy.files import write_aside
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.lowering import EngineChoice, LoweredModule
from embedl_deploy.report.tables import timings_table
from embedl_deploy.tuning.machine import JsonValue, machine_info
from embedl_deploy.tuning.measure import Timing, measure_in_rotation, timed, times_slower

RESULTS = Path(__file__).parent / "results"
EAGER = "eager"
CHOSEN = 'choose="measure"'
PAIR = "openvino, then inductor"
ALLOWED_SLOWER = 1.03
TOLERANCE = 2e-2
"""Of the outputs: the head computes in bfloat16."""

ALONE: dict[str, list[EngineChoice]] = {
    "inductor alone": ["inductor"],
    "openvino, rest eager": ["openvino"],
    "onnxruntime, rest eager": ["onnxruntime"],
}


class WideStemAndHead(nn.Module):
    """Four residual convolutions in float32, and a feed-forward network in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(3, 64, 7, stride=4, padding=3)
        self.blocks = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))
        layers = (nn.Linear(64, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU())
        self.head = nn.Sequential(*layers, nn.Linear(2048, 64)).bfloat16()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.first(image))
        for block in self.blocks:
            features = torch.relu(block(features)) + features
        tokens = features.flatten(2)[:, :, :128].transpose(1, 2).bfloat16()
        return self.head(tokens).float().mean(1)


def wide() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Returns the model and an image."""
    generator = torch.Generator().manual_seed(1)
    return WideStemAndHead().eval(), (torch.randn(1, 3, 224, 224, generator=generator),)


@dataclass(frozen=True)
class Shared:
    """One model to be shared."""

    name: str
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


MODELS = (
    Shared("stem and bf16 head, 224×224", stem_and_head),
    Shared("wide stem and bf16 head, 224×224", wide),
)


def main() -> None:
    """Measures each model, prints its table and writes all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring per model")
    parser.add_argument("--output", type=Path, default=RESULTS / "two_engines.json")
    options = parser.parse_args()
    quiet_libraries()
    screen = Screen(as_json=False)
    models: dict[str, JsonValue] = {
        shared.name: run(shared, options.seconds, screen) for shared in MODELS
    }
    content = {"machine": machine_info(), "models": models}
    write_aside(options.output, (json.dumps(content, indent=2) + "\n").encode())
    Console().print(f"written to {options.output}")


def run(shared: Shared, seconds: float, screen: Screen) -> dict[str, JsonValue]:
    """Builds and times all candidates of a model."""
    model, args = shared.make()
    built = {
        name: lower(model, args, engines=engines)
        for name, engines in {**ALONE, PAIR: ["openvino", "inductor"]}.items()
    }
    built[CHOSEN] = lower(model, args, engines=["inductor", "openvino", "eager"], choose="measure")
    calls = {EAGER: eager(model), **built}
    runners = {name: timed(on_inputs(call, args, {})) for name, call in calls.items()}
    timings = measure_in_rotation(runners, max_rounds=40, budget_s=seconds)
    screen.show(timings_table(timings, EAGER, shared.name))
    with torch.no_grad():
        expected = model(*args)
    rows = {
        name: facts(call, timings, name, relative_error(call(*args), expected))
        for name, call in built.items()
    }
    alone = min((EAGER, *ALONE), key=lambda name: timings[name].median_ms)
    slower = {name: times_slower(timings[name], timings[alone]) for name in (PAIR, CHOSEN)}
    return {
        EAGER: timings[EAGER].as_json(),
        "candidates": dict(rows),
        "whole": [m.engine for m in built[CHOSEN].report.whole if m.kept],
        "best_alone": alone,
        "pair_wins": slower[PAIR] < 1,
        "times_slower_than_the_best_alone": dict(slower),
        f"at most {ALLOWED_SLOWER} times slower": slower[CHOSEN] <= ALLOWED_SLOWER,
    }


def facts(
    call: LoweredModule, timings: dict[str, Timing], name: str, error: float
) -> dict[str, JsonValue]:
    """Returns who runs what, how fast and how exactly."""
    return {
        "parts": dict(call.report.engines),
        "eager_nodes": len(call.report.eager_nodes),
        "times_faster_than_eager": timings[EAGER].median_ms / timings[name].median_ms,
        "latency": timings[name].as_json(),
        "relative_error": error,
        "within_tolerance": error <= TOLERANCE,
    }


if __name__ == "__main__":
    main()
