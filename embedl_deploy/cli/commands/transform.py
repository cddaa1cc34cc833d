"""``embedl-deploy transform``: rewrites a model and shows what was done."""

from typing import Annotated

import torch
import typer

from embedl_deploy.cli.choice import chosen, transformed
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.cli.options import (
    DEFAULT_BACKEND,
    BackendOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    OnlyOption,
    OutputOption,
    PlanOption,
    SavePlanOption,
    SeedOption,
    SkipOption,
    StrictOption,
    input_shapes,
)
from embedl_deploy.cli.output_files import require_writable
from embedl_deploy.cli.saved_programs import save_program
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.text import graph_text
from embedl_deploy.report.json_form import transformation_json
from embedl_deploy.report.tables import stages_table


def transform_command(
    model: ModelArgument,
    backend: BackendOption = DEFAULT_BACKEND,
    inputs: InputsOption = None,
    output: OutputOption = None,
    show_graph: Annotated[
        bool, typer.Option("--graph", help="Also print the rewritten graph.")
    ] = False,
    only: OnlyOption = None,
    skip: SkipOption = None,
    plan: PlanOption = None,
    strict: StrictOption = True,
    save_plan: SavePlanOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Rewrites MODEL with a backend's conversions and fusions; --output saves a .pt2 program."""
    screen = Screen(as_json=as_json)
    require_writable(output)
    choice = chosen(only, skip, plan, save_plan, strict=strict)
    with screen.step(f"loading {model}"):
        loaded = load_model(model, input_shapes=input_shapes(inputs), seed=seed)
    with screen.step(f"rewriting for {backend}"):
        result = transformed(loaded, backend, choice)
    with torch.no_grad():
        error = relative_error(loaded.call(result.model), loaded.call())
    if output is not None:
        with screen.step(f"saving {output}"):
            save_program(result.model, loaded.args, loaded.kwargs, output)
    screen.show(stages_table(result.report.passes, f"{model} for {backend}"))
    screen.show(f"relative difference to the model's own output: {error:.1e}")
    if show_graph:
        screen.show(graph_text(result.model))
    screen.emit(
        {
            "model": model,
            "report": transformation_json(result.report),
            "relative_error": error,
            "graph": graph_text(result.model) if show_graph else None,
            "output": None if output is None else str(output),
        }
    )
