"""Measures what calibration costs beside running the model, and what finishing observers takes.

    python -m benchmarks.calibration [--texts N] [--rounds N] [--output FILE]

all-MiniLM-L6-v2 is run in eager float32 on texts one at a time, then quantized with the default
settings on the same texts: smoothing, quantizers, statistics, scales, bias corrections and checks,
tracing apart. DenseNet-121's quantizers watch a few images, then set their scales.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.cli.demo.sentences import load_minilm, standard_library_docstrings, tokenize
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.files import write_aside
from embedl_deploy.passes.calibration import observe_model
from embedl_deploy.quantization.stub import stubs_of
from embedl_deploy.quantize import CalibrationMethod, QuantConfig, insert_qdq, quantize
from embedl_deploy.transformation import transform
from embedl_deploy.tuning.machine import JsonValue, machine_info

RESULTS = Path(__file__).parent / "results" / "calibration.json"
RATIO_BAR = 2.0
"""Most time that calibrating may take, in times of running the model on the same texts."""

FINISH_BAR_S = 0.5
"""Most seconds for all observers of DenseNet-121."""

IMAGES = 4
METHODS = (
    CalibrationMethod.MINMAX,
    CalibrationMethod.HISTOGRAM,
    CalibrationMethod.PERCENTILE,
    CalibrationMethod.ENTROPY,
    CalibrationMethod.MSE,
)

Rows = list[tuple[Tensor, Tensor]]


def main() -> None:
    """Measures both and writes them down."""
    arguments = _arguments()
    quiet_libraries()
    screen = Screen(as_json=False)
    with screen.step("MiniLM"):
        minilm = time_minilm(arguments.texts, arguments.rounds)
    with screen.step("DenseNet-121"):
        finishing = time_finishing(arguments.rounds)
    document: dict[str, JsonValue] = {
        "machine": machine_info(),
        "all-MiniLM-L6-v2": dict(minilm),
        "DenseNet-121": dict(finishing),
        "bars": {
            f"calibrating takes at most {RATIO_BAR} times running": minilm["ratio"] <= RATIO_BAR,
            f"all observers finish within {FINISH_BAR_S} s": finishing["slowest_s"] <= FINISH_BAR_S,
        },
    }
    write_aside(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
    screen.note(json.dumps(document["bars"]))


def time_minilm(texts: int, rounds: int) -> dict[str, float]:
    """Returns seconds to run and to calibrate, medians of rounds that take turns."""
    model = load_minilm()
    rows: Rows = list(tokenize(standard_library_docstrings(texts)).rows())
    began = time.perf_counter()
    graph = transform(model, rows[0], backend="inductor").model
    tracing = time.perf_counter() - began
    running: list[float] = []
    calibrating: list[float] = []
    for _ in range(rounds):
        running.append(_seconds(lambda: _run(model, rows)))
        calibrating.append(_seconds(lambda: quantize(graph, forward_loop=rows)))
    run_s, calibrate_s = statistics.median(running), statistics.median(calibrating)
    return {
        "texts": texts,
        "rounds": rounds,
        "running_s": run_s,
        "calibrating_s": calibrate_s,
        "ratio": calibrate_s / run_s,
        "tracing_and_rewriting_s": tracing,
    }


def time_finishing(rounds: int) -> dict[str, float]:
    """Returns the seconds in which all observers find their ranges, by method."""
    loaded = load_model("torchvision:densenet121")
    images = [args for args, _ in loaded.random_inputs(IMAGES)]
    graph = transform(loaded.model, images[0], backend="inductor").model
    found = {
        f"{method.value}_s": statistics.median(
            _finishing_seconds(graph, method, images) for _ in range(rounds)
        )
        for method in METHODS
    }
    observers = sum(1 for _ in stubs_of(insert_qdq(graph)))
    return {"observers": observers, **found, "slowest_s": max(found.values())}


def _finishing_seconds(
    graph: GraphModule, method: CalibrationMethod, images: list[tuple[object, ...]]
) -> float:
    config = QuantConfig()
    assert config.activation is not None, "the default quantizes activations"
    activation = replace(config.activation, calibration_method=method)
    prepared = insert_qdq(graph, config=replace(config, activation=activation))
    observe_model(prepared, images)
    stubs = [stub for _, stub in stubs_of(prepared)]
    return _seconds(lambda: [stub.finish_observing() for stub in stubs])


def _run(model: torch.nn.Module, rows: Rows) -> None:
    with torch.no_grad():
        for row in rows:
            model(*row)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
