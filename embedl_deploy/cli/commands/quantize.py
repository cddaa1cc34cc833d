"""``embedl-deploy quantize``: rounds a model to int8 and shows what was rounded."""

import torch

from embedl_deploy.cli.calibration_data import calibration_inputs
from embedl_deploy.cli.choice import chosen
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.cli.options import (
    DEFAULT_BACKEND,
    BackendOption,
    ConfigOption,
    DataOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    OnlyOption,
    OutputOption,
    PlanOption,
    RangeOption,
    SamplesOption,
    SavePlanOption,
    SeedOption,
    SkipOption,
    StrictOption,
    input_shapes,
    quant_config,
)
from embedl_deploy.cli.output_files import require_writable
from embedl_deploy.cli.pipeline import quantized
from embedl_deploy.cli.saved_programs import save_program
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.passes.predicted_speed import predicted_slower
from embedl_deploy.quantize import CalibrationMethod, load_config
from embedl_deploy.report.json_form import transformation_json
from embedl_deploy.report.quantization_tables import slower_table
from embedl_deploy.report.tables import stages_table
from embedl_deploy.rewriting.records import report_of


def quantize_command(
    model: ModelArgument,
    backend: BackendOption = DEFAULT_BACKEND,
    inputs: InputsOption = None,
    data: DataOption = None,
    ranges: RangeOption = CalibrationMethod.MINMAX,
    config: ConfigOption = None,
    samples: SamplesOption = 32,
    output: OutputOption = None,
    only: OnlyOption = None,
    skip: SkipOption = None,
    plan: PlanOption = None,
    strict: StrictOption = True,
    save_plan: SavePlanOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Rewrites MODEL and rounds it to int8; --output saves a .pt2 program that simulates it."""
    screen = Screen(as_json=as_json)
    require_writable(output)
    choice = chosen(only, skip, plan, save_plan, strict=strict)
    with screen.step(f"loading {model}"):
        loaded = load_model(model, input_shapes=input_shapes(inputs), seed=seed)
        batches = calibration_inputs(loaded, data, samples)
    if data is None:
        screen.note("calibrating on random numbers: give --data for scales that mean something")
    with screen.counted_step("calibrating", len(batches)) as on_input:
        graph = quantized(
            loaded,
            batches,
            backend=backend,
            config=quant_config(ranges) if config is None else load_config(config),
            choice=choice,
            on_input=on_input,
        )
    with torch.no_grad():
        error = relative_error(loaded.call(graph), loaded.call())
    if output is not None:
        with screen.step(f"saving {output}"):
            save_program(graph, loaded.args, loaded.kwargs, output)
    report = report_of(graph)
    slower = predicted_slower(graph)
    screen.show(stages_table(report.passes, f"{model} for {backend}"))
    if slower:
        screen.show(slower_table(slower))
    screen.show(f"relative difference to the model's own output: {error:.1e}")
    screen.emit(
        {
            "model": model,
            "report": transformation_json(report),
            "relative_error": error,
            "predicted_slower": [
                {"node": node.name, "int8_ms": found.int8_ms, "bf16_ms": found.bf16_ms}
                for node, found in slower
            ],
            "calibration_inputs": len(batches),
            "calibration_data": data,
            "output": None if output is None else str(output),
        }
    )
