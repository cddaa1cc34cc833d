"""Measures how much of an int4 drop quantization-aware training recovers on the digits nets.

    python -m benchmarks.qat [net…] [--output FILE]

Each net is trained in float on four fifths of the images and judged on the rest. Its weights go to
int4 (one scale per output channel) with int8 activations, then both go to int4: calibrated alone,
and trained for at most two minutes on the images it was trained on. What is judged is the graph
that ``convert`` returns. Writes one JSON file; rows of nets that are not asked for stay in it.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.accuracy.digits_nets import NETS, trained
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.cli.demo.digits import load_digits
from embedl_deploy.files import write_aside
from embedl_deploy.passes.quantization import placement_of
from embedl_deploy.quantize import (
    Precision,
    QatConfig,
    QuantConfig,
    TensorQuantConfig,
    convert,
    prepare_qat,
    quantize,
)
from embedl_deploy.transformation import transform
from embedl_deploy.tuning.machine import JsonValue, machine_info

RESULTS = Path(__file__).parent / "results" / "qat.json"
FOLDS, CALIBRATION_IMAGES, BATCH = 5, 128, 64
EPOCHS = 3
NORMS_FREEZE_AT, RANGES_FREEZE_AT = 0.5, 0.8
"""Shares of the training."""

LEARNING_RATE = 1e-3
SECONDS_ALLOWED = 120.0
DROP_THAT_COUNTS = 0.02
SHARE_TO_RECOVER = 0.5

SIMULATED = replace(
    TENSORRT,
    name="tensorrt, int4 activations simulated",
    placement=replace(
        placement_of(TENSORRT), activation_precisions=(Precision.INT8, Precision.INT4)
    ),
)
"""No target here multiplies int4 activations: they show what a large drop leaves to recover."""

FORMATS = {
    "int4 weights, int8 activations": Precision.INT8,
    "int4 weights, int4 activations": Precision.INT4,
}


Row = dict[str, float | bool | None]


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 16, 16) and labels, to train on and held out."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor

    def accuracy(self, model: nn.Module) -> float:
        """Returns the share of held-out images that ``model`` names rightly."""
        with torch.no_grad():
            found = model(self.held_out_images).argmax(1)
        return float((found == self.held_out_labels).double().mean())


def main() -> None:
    """Measures the nets asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=[], help="of " + ", ".join(NETS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, digits = Console(), _digits()
    rows = _known_rows(arguments.output)
    for name in arguments.nets or NETS:
        model = trained(name, digits.images, digits.labels)
        for label, precision in FORMATS.items():
            row = rows[f"{name}, {label}"] = measure(model, digits, precision)
            console.print(f"{name}, {label}: {row}")
        verdicts = [row["meets the bar"] for row in rows.values()]
        counting = [verdict for verdict in verdicts if verdict is not None]
        document: dict[str, JsonValue] = {
            "machine": machine_info(),
            "rows": {name: dict(row) for name, row in rows.items()},
            "bars": {
                "at least half of every drop above 2 points recovered in under 2 minutes": (
                    bool(counting) and all(counting)
                )
            },
        }
        write_aside(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
    console.print(f"written to {arguments.output}")


def _known_rows(path: Path) -> dict[str, Row]:
    """Returns the rows of an earlier run, which those of this one replace."""
    return cast("dict[str, Row]", json.loads(path.read_text())["rows"]) if path.exists() else {}


def measure(model: nn.Module, digits: Digits, activations: Precision, epochs: int = EPOCHS) -> Row:
    """Returns the accuracy in float, after calibration alone, and after training."""
    config = QuantConfig(
        activation=TensorQuantConfig(activations, symmetric=False),
        weight=TensorQuantConfig(Precision.INT4, per_channel=True),
    )
    rows = digits.images[:CALIBRATION_IMAGES]
    any_number = {0: torch.export.Dim("images", min=2, max=4096)}
    traced = transform(model, (rows,), dynamic_shapes=(any_number,), backend=SIMULATED).model
    quantized = quantize(traced, None, config, forward_loop=[rows], backend=SIMULATED)
    reference, calibrated = digits.accuracy(model), digits.accuracy(convert(quantized))
    began = time.perf_counter()
    integer = convert(train(quantized, digits, epochs))
    seconds = time.perf_counter() - began
    after, drop = digits.accuracy(integer), reference - calibrated
    counts = drop > DROP_THAT_COUNTS
    recovered = (after - calibrated) / drop if counts else None
    return {
        "top1 fp32": reference,
        "top1 calibrated": calibrated,
        "top1 trained": after,
        "training seconds": seconds,
        "share of the drop recovered": recovered,
        "meets the bar": None
        if recovered is None
        else recovered >= SHARE_TO_RECOVER and seconds < SECONDS_ALLOWED,
    }


def train(quantized: torch.fx.GraphModule, digits: Digits, epochs: int) -> torch.fx.GraphModule:
    """Returns the graph after quantization-aware training with a one-cycle schedule."""
    batches = -(-len(digits.labels) // BATCH)
    steps = epochs * batches
    training = prepare_qat(
        quantized,
        QatConfig(
            freeze_norms_after=int(NORMS_FREEZE_AT * steps),
            freeze_ranges_after=int(RANGES_FREEZE_AT * steps),
        ),
    )
    optimizer = torch.optim.AdamW(training.parameter_groups(), LEARNING_RATE, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        order = torch.randperm(len(digits.labels), generator=generator)
        for chosen in torch.tensor_split(order, batches):
            scores = training.model(digits.images[chosen])
            loss = functional.cross_entropy(scores, digits.labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            training.step()
    return training.finish()


def _digits() -> Digits:
    """Returns the split whose held-out part is the first fold of ``make accuracy``."""
    loaded = load_digits()
    images = torch.cat([loaded.train_images, loaded.test_images])
    labels = torch.cat([loaded.train_labels, loaded.test_labels])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out = order[::FOLDS]
    rest = order[~torch.isin(order, held_out)]
    return Digits(images[rest], labels[rest], images[held_out], labels[held_out])


if __name__ == "__main__":
    main()
