"""Measures what rounding weights together (GPTQ) leaves of the error of the nearest codes.

    python -m benchmarks.weight_rounding [row…] [--output FILE]

Rows are the digits nets (the first fold) and MiniLM, with int4 and int8 weights per output channel
and int8 activations; figures are relative errors of the outputs against float, on inputs that
calibration did not see. Writes one JSON file; rows that are not asked for stay in it.
"""

import argparse
import json
import time
from pathlib import Path
from typing import cast

import torch
from rich.console import Console

from benchmarks.accuracy.digits_nets import NETS
from benchmarks.accuracy.judge import score
from benchmarks.accuracy.subjects import Subject, subjects_of
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.cli.baselines import first_tensor
from embedl_deploy.files import write_aside
from embedl_deploy.quantize import (
    CalibrationMethod,
    Precision,
    QuantConfig,
    TensorQuantConfig,
    WeightRounding,
    quantize,
)
from embedl_deploy.tuning.machine import JsonValue, machine_info

RESULTS = Path(__file__).parent / "results" / "weight_rounding.json"
CALIBRATION_INPUTS, TEST_INPUTS = 96, 200
RANGES = {"minmax": CalibrationMethod.MINMAX, "searched": CalibrationMethod.MSE}

Row = dict[str, float]


def main() -> None:
    """Measures the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[], help="of " + ", ".join([*NETS, "MiniLM"]))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, rows = Console(), _known_rows(arguments.output)
    for name in arguments.rows or [*NETS, "MiniLM"]:
        subject = next(subjects_of(name if name == "MiniLM" else f"digits {name}"))
        for precision in (Precision.INT4, Precision.INT8):
            for label, method in RANGES.items():
                weight = TensorQuantConfig(precision, per_channel=True, calibration_method=method)
                row = rows[f"{name}, {precision.value} weights, {label} ranges"] = measure(
                    subject, weight
                )
                console.print(f"{name}, {precision.value}, {label}: {row}")
                document: dict[str, JsonValue] = {
                    "machine": machine_info(),
                    "rows": {key: dict(value) for key, value in rows.items()},
                }
                write_aside(arguments.output, (json.dumps(document, indent=1) + "\n").encode())


def measure(subject: Subject, weight: TensorQuantConfig) -> Row:
    """Returns the relative error of the outputs with each way to round, and how long each took."""
    calibration, test = subject.calibration[:CALIBRATION_INPUTS], subject.test[:TEST_INPUTS]
    row: Row = {}
    with torch.no_grad():
        reference = torch.cat([first_tensor(subject.model(*inputs)) for inputs in test])
        for rounding in WeightRounding:
            began = time.perf_counter()
            quantized = quantize(
                subject.model,
                calibration[0],
                QuantConfig(weight=weight, weight_rounding=rounding),
                forward_loop=calibration,
                backend=TENSORRT,
            )
            row[f"{rounding.value}, seconds"] = time.perf_counter() - began
            outputs = torch.cat([first_tensor(quantized(*inputs)) for inputs in test])
            row[f"{rounding.value}, noise"] = score(outputs, reference).noise
    row["noise left"] = row["gptq, noise"] / row["nearest, noise"]
    row["noise left by adaround"] = row["adaround, noise"] / row["nearest, noise"]
    return row


def _known_rows(path: Path) -> dict[str, Row]:
    return cast("dict[str, Row]", json.loads(path.read_text())["rows"]) if path.exists() else {}


if __name__ == "__main__":
    main()
