"""Arguments and options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from embedl_deploy.backends.registry import require_backend
from embedl_deploy.quantization import CalibrationMethod, QuantConfig, TensorQuantConfig

DEFAULT_BACKEND = "inductor"


class RunPrecision(StrEnum):
    """What a lowered model computes in."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    """int8 where the backend's patterns allow it, the rest in bfloat16."""

    INT8_FP32 = "int8-fp32"
    """int8 where the backend's patterns allow it, the rest in float32."""

    @property
    def is_integer(self) -> bool:
        """Returns whether the model has to be quantized."""
        return self in (RunPrecision.INT8, RunPrecision.INT8_FP32)

    @property
    def rest_is_bf16(self) -> bool:
        """Returns whether what stays floating point runs in bfloat16."""
        return self in (RunPrecision.INT8, RunPrecision.BF16)


def _known_backend(name: str) -> str:
    try:
        require_backend(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return name


def parse_shape(text: str) -> tuple[int, ...]:
    """Returns ``"1x3x224x224"`` as (1, 3, 224, 224)."""
    sizes = text.lower().replace(",", "x").split("x")
    if not all(size.strip().isdigit() for size in sizes):
        raise typer.BadParameter(f"a shape is written like 1x3x224x224, got {text!r}")
    return tuple(int(size) for size in sizes)


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="module:factory, a .pt2 file, or a name that torchvision, timm or transformers "
        "knows (resnet50, timm:vit_small_patch16_224, transformers:bert-base).",
    ),
]

BackendOption = Annotated[
    str, typer.Option("--backend", "-b", callback=_known_backend, help="The target.")
]

InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", help="Shape of an input, like 1x3x224x224; repeat for several inputs."
    ),
]

SeedOption = Annotated[int, typer.Option(help="For random weights and inputs.")]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of tables.")
]

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write the result.")
]

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Calibration data: module:function, which returns an iterable of inputs (a tensor, "
        "a tuple of args or a dict of kwargs each). Random numbers if not given.",
    ),
]

SamplesOption = Annotated[
    int, typer.Option("--samples", min=1, help="How many inputs to calibrate on at most.")
]


OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        help="Rewrite only this: a stage (fusion), a pattern (fuse-*) or a module and what is in "
        "it (encoder.layer.0); repeat for more.",
    ),
]

SkipOption = Annotated[
    list[str] | None,
    typer.Option("--skip", help="Leave this alone, written like --only; repeat for more."),
]

PlanOption = Annotated[
    Path | None,
    typer.Option("--plan", help="Replay the decisions of a saved plan; it names its patterns."),
]

StrictOption = Annotated[
    bool,
    typer.Option(
        " /--no-strict",
        help="With --plan: apply what still fits where the model no longer has every saved site.",
        show_default=False,
    ),
]

SavePlanOption = Annotated[
    Path | None,
    typer.Option("--save-plan", help="Where to save what is rewritten, as JSON for --plan."),
]

PrecisionOption = Annotated[
    RunPrecision,
    typer.Option(
        "--precision",
        "-p",
        help="int8: the rest in bfloat16; int8-fp32: the rest in float32; or all in one.",
    ),
]


RangeOption = Annotated[
    CalibrationMethod,
    typer.Option(
        "--range",
        help="How an activation's range is found: minmax keeps outliers, which transformers "
        "need; histogram clips them, which suits convolutional nets.",
    ),
]


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="A configuration as JSON, such as search --output saves."),
]


def quant_config(method: CalibrationMethod) -> QuantConfig:
    """Returns the library's configuration with this way to find the ranges of activations."""
    activation = TensorQuantConfig(symmetric=False, calibration_method=method)
    return QuantConfig(activation=activation)


def input_shapes(texts: list[str] | None) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes given on the command line."""
    return tuple(parse_shape(text) for text in texts or ())
