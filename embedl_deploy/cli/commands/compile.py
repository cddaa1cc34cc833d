"""``embedl-deploy compile``: a model in, a file that engines run out."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from embedl_deploy.cli.baselines import first_tensor
from embedl_deploy.cli.calibration_data import calibration_inputs
from embedl_deploy.cli.choice import chosen
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.cli.options import (
    DEFAULT_BACKEND,
    BackendOption,
    DataOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    OnlyOption,
    PlanOption,
    PrecisionOption,
    RangeOption,
    RunPrecision,
    SamplesOption,
    SavePlanOption,
    SeedOption,
    SkipOption,
    StrictOption,
    input_shapes,
    quant_config,
)
from embedl_deploy.cli.output_files import require_writable
from embedl_deploy.cli.pipeline import lowered, rewritten
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.quantize import CalibrationMethod
from embedl_deploy.report.json_form import json_value, stage_json
from embedl_deploy.report.tables import stages_table, subgraphs_table


def compile_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    precision: PrecisionOption = RunPrecision.INT8,
    backend: BackendOption = DEFAULT_BACKEND,
    inputs: InputsOption = None,
    data: DataOption = None,
    ranges: RangeOption = CalibrationMethod.MINMAX,
    samples: SamplesOption = 32,
    only: OnlyOption = None,
    skip: SkipOption = None,
    plan: PlanOption = None,
    strict: StrictOption = True,
    save_plan: SavePlanOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Rewrites, quantizes and builds MODEL; embedl_deploy.load_lowered loads the file."""
    screen = Screen(as_json=as_json)
    require_writable(output)
    choice = chosen(only, skip, plan, save_plan, strict=strict)
    with screen.step(f"loading {model}"):
        loaded = load_model(model, input_shapes=input_shapes(inputs), seed=seed)
        batches = calibration_inputs(loaded, data, samples) if precision.is_integer else None
    if batches is not None and data is None:
        screen.note("calibrating on random numbers: give --data for scales that mean something")
    with screen.counted_step("rewriting and calibrating", len(batches or ())) as on_input:
        graph = rewritten(
            loaded,
            backend=backend,
            calibration=batches,
            config=quant_config(ranges),
            choice=choice,
            on_input=on_input,
        )
    with screen.step(f"building for {backend} in {precision.value}"):
        ours = lowered(graph.graph, loaded.args, loaded.kwargs, precision)
    with screen.step(f"saving {output}"):
        ours.save(output)
    with torch.no_grad():
        reference = first_tensor(loaded.call())
        error = relative_error(first_tensor(loaded.call(ours)).to(reference.dtype), reference)
    screen.show(stages_table(graph.records, f"{model} for {backend}"))
    screen.show(subgraphs_table(ours.report))
    screen.show(f"multiply-accumulates in int8: {graph.integer_share:.1%}")
    screen.show(f"relative difference to the model's own output: {error:.1e}")
    screen.show(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    screen.emit(
        {
            "model": model,
            "stages": {record.name: stage_json(record) for record in graph.records},
            "lowering": json_value(ours.report.to_dict()),
            "share_of_macs_in_int8": graph.integer_share,
            "relative_error": error,
            "calibration_data": data,
            "output": str(output),
            "output_bytes": output.stat().st_size,
        }
    )
