"""``embedl-deploy bench``: how fast a model is, eager, compiled and lowered."""

from typing import Annotated

import torch
import typer

from embedl_deploy.cli.baselines import (
    Model,
    compiled,
    compiled_bf16_freezing,
    eager,
    first_tensor,
    on_inputs,
)
from embedl_deploy.cli.calibration_data import calibration_inputs
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.model_sources import LoadedModel, load_model
from embedl_deploy.cli.options import (
    DEFAULT_BACKEND,
    BackendOption,
    DataOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    OutputOption,
    RangeOption,
    RunPrecision,
    SamplesOption,
    SeedOption,
    input_shapes,
    quant_config,
)
from embedl_deploy.cli.output_files import require_writable, write_json
from embedl_deploy.cli.pipeline import lowered, rewritten
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.quantize import CalibrationMethod
from embedl_deploy.report.tables import timings_table
from embedl_deploy.tuning.machine import JsonValue, machine_info
from embedl_deploy.tuning.measure import measure_in_rotation, speedups, timed

_ROUNDS = 10


def bench_command(
    model: ModelArgument,
    precision: Annotated[
        list[RunPrecision] | None,
        typer.Option("--precision", "-p", help="What to lower to; repeat for several."),
    ] = None,
    backend: BackendOption = DEFAULT_BACKEND,
    inputs: InputsOption = None,
    data: DataOption = None,
    ranges: RangeOption = CalibrationMethod.MINMAX,
    samples: SamplesOption = 16,
    seconds: Annotated[
        float, typer.Option(help="When to stop measuring, after three rounds at least.")
    ] = 60.0,
    output: OutputOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measures MODEL eager, with torch.compile and lowered, in rotating blocks of 20 calls."""
    screen = Screen(as_json=as_json)
    require_writable(output)
    with screen.step(f"loading {model}"):
        loaded = load_model(model, input_shapes=input_shapes(inputs), seed=seed)
    candidates = _baselines(loaded, screen)
    for wanted in precision or [RunPrecision.INT8]:
        batches = calibration_inputs(loaded, data, samples) if wanted.is_integer else None
        with screen.step(f"building for {backend} in {wanted.value}"):
            graph = rewritten(
                loaded,
                backend=backend,
                calibration=batches,
                config=quant_config(ranges),
            )
            candidates[f"embedl_deploy {wanted.value}"] = lowered(
                graph.graph, loaded.args, loaded.kwargs, wanted
            )
    errors = {name: _error(loaded, call) for name, call in candidates.items()}
    runners = {
        name: timed(on_inputs(call, loaded.args, loaded.kwargs))
        for name, call in candidates.items()
    }
    with screen.counted_step("measuring in rotating blocks", _ROUNDS) as on_round:
        timings = measure_in_rotation(
            runners, max_rounds=_ROUNDS, budget_s=seconds, on_round=on_round
        )
    ratios = speedups(timings, over="eager")
    document: dict[str, JsonValue] = {
        "model": model,
        "machine": machine_info(),
        "candidates": {
            name: {
                **timing.as_json(),
                "times_faster_than_eager": ratios[name],
                "relative_error": errors[name],
            }
            for name, timing in timings.items()
        },
    }
    screen.show(timings_table(timings, "eager", f"Latency of {model}"))
    if output is not None:
        write_json(output, document)
    screen.emit(document)


def _baselines(loaded: LoadedModel, screen: Screen) -> dict[str, Model]:
    with screen.step("building torch.compile and bf16 torch.compile"):
        return {
            "eager": eager(loaded.model),
            "torch.compile": compiled(loaded.model, loaded.args, loaded.kwargs),
            "torch.compile bf16, freezing": compiled_bf16_freezing(
                loaded.model, loaded.args, loaded.kwargs
            ),
        }


def _error(loaded: LoadedModel, call: Model) -> float:
    with torch.no_grad():
        reference = first_tensor(loaded.call())
        return relative_error(first_tensor(loaded.call(call)).to(reference.dtype), reference)
