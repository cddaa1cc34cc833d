"""``embedl-deploy search``: finds precisions that keep to a budget."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import nn

from embedl_deploy.cli.calibration_data import calibration_inputs
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.model_sources import Inputs, LoadedModel, import_object, load_model
from embedl_deploy.cli.options import (
    DEFAULT_BACKEND,
    BackendOption,
    DataOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    OutputOption,
    RangeOption,
    SamplesOption,
    SeedOption,
    input_shapes,
    quant_config,
)
from embedl_deploy.cli.output_files import require_writable, write_json, written_whole
from embedl_deploy.errors import ModelSourceError
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.quantization.config_file import config_as_json
from embedl_deploy.quantize import CalibrationMethod, search_precision
from embedl_deploy.report.search_picture import frontier_svg
from embedl_deploy.report.search_tables import (
    frontier_table,
    groups_table,
    search_facts,
    search_json,
)

MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="module:function that takes a model and returns how good it is, higher is better. "
        "Minus the mean relative error of the output on the data if not given.",
    ),
]
DropOption = Annotated[
    float | None,
    typer.Option("--max-drop", min=0.0, help="Budget: how much of the metric may be lost."),
]
LatencyOption = Annotated[
    float | None,
    typer.Option("--max-latency-ms", min=1e-6, help="Budget: of one call of the lowered model."),
]
BytesOption = Annotated[
    float | None, typer.Option("--max-bytes", min=1.0, help="Budget: of the parameters as stored.")
]
MeasuredOption = Annotated[
    bool,
    typer.Option(
        "--measured", help="Build and time the model twice per kind of layer to know what it saves."
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="Keeps what was found; an interrupted run goes on.")
]
PictureOption = Annotated[
    Path | None, typer.Option("--picture", help="Where to draw the frontier, as SVG.")
]


def search_command(
    model: ModelArgument,
    backend: BackendOption = DEFAULT_BACKEND,
    inputs: InputsOption = None,
    data: DataOption = None,
    metric: MetricOption = None,
    max_drop: DropOption = None,
    max_latency_ms: LatencyOption = None,
    max_bytes: BytesOption = None,
    measured: MeasuredOption = False,
    ranges: RangeOption = CalibrationMethod.MINMAX,
    samples: SamplesOption = 32,
    state: StateOption = None,
    output: OutputOption = None,
    picture: PictureOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Chooses which layers of MODEL to quantize; --output saves it for quantize --config."""
    if sum(limit is not None for limit in (max_drop, max_latency_ms, max_bytes)) != 1:
        raise typer.BadParameter("give one of --max-drop, --max-latency-ms and --max-bytes")
    screen = Screen(as_json=as_json)
    for path in (output, picture):
        require_writable(path)
    with screen.step(f"loading {model}"):
        loaded = load_model(model, input_shapes=input_shapes(inputs), seed=seed)
        batches = calibration_inputs(loaded, data, samples)
    if data is None:
        screen.note("searching on random numbers: give --data for precisions that mean something")
    found = search_precision(
        loaded.model,
        [kwargs or args for args, kwargs in batches],
        Fidelity(loaded, batches) if metric is None else _metric(metric),
        max_drop=max_drop,
        max_latency_ms=max_latency_ms,
        max_bytes=max_bytes,
        args=loaded.args,
        kwargs=loaded.kwargs,
        config=quant_config(ranges),
        costs="measured" if measured else None,
        state=state,
        backend=backend,
        progress=screen.note,
    )
    if output is not None:
        write_json(output, {**config_as_json(found.config)})
    if picture is not None:
        with written_whole(picture) as aside:
            aside.write_text(frontier_svg(found), encoding="utf-8")
    screen.show(groups_table(found), frontier_table(found), search_facts(found, f"{model}"))
    screen.emit({"model": model, **search_json(found)})


class Fidelity:
    """Minus the mean relative error of the output against the model as it was given."""

    def __init__(self, loaded: LoadedModel, batches: list[Inputs]) -> None:
        self.batches = batches
        with torch.no_grad():
            self.references = [loaded.model(*args, **kwargs) for args, kwargs in batches]

    def __call__(self, model: nn.Module) -> float:
        """Returns the figure, at most 0."""
        with torch.no_grad():
            errors = [
                relative_error(model(*args, **kwargs), reference)
                for (args, kwargs), reference in zip(self.batches, self.references, strict=True)
            ]
        return -sum(errors) / len(errors)


def _metric(source: str) -> Callable[[nn.Module], float]:
    """Returns the function that ``module:function`` names.

    Raises:
        ModelSourceError: It names none.
    """
    module_name, separator, attribute = source.partition(":")
    if not separator:
        raise ModelSourceError(f"a metric is named as module:function, got {source!r}")
    found = import_object(source, module_name, attribute)
    if not callable(found):
        raise ModelSourceError(f"{source} must be a function, got {type(found).__name__}")
    return cast("Callable[[nn.Module], float]", found)
