"""``embedl-deploy demo``: two trained models from fp32 to int8, with nothing pretended."""

from pathlib import Path
from typing import Annotated

import typer

from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.demo.experiment import run_experiment
from embedl_deploy.cli.demo.show import experiment_json, experiment_table
from embedl_deploy.cli.demo.subjects import digits, sentences
from embedl_deploy.cli.options import DEFAULT_BACKEND, JsonOption
from embedl_deploy.cli.output_files import make_folder, require_writable, write_json
from embedl_deploy.errors import CheckpointError
from embedl_deploy.tuning.machine import JsonValue, machine_info


def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the figures.")
    ] = Path("demo.json"),
    as_json: JsonOption = False,
) -> None:
    """Takes all-MiniLM-L6-v2 and a network trained on digits from fp32 to int8."""
    screen = Screen(as_json=as_json)
    require_writable(output)
    models: dict[str, JsonValue] = {}
    reproduced = True
    folder = output.with_suffix("")
    make_folder(folder)
    for make_subject in (digits, sentences):
        experiment = run_experiment(make_subject(screen), folder, DEFAULT_BACKEND, screen)
        screen.show(experiment_table(experiment))
        models[experiment.subject.name] = experiment_json(experiment)
        reproduced = reproduced and experiment.is_reproduced
    document: dict[str, JsonValue] = {"machine": machine_info(), "models": models}
    write_json(output, document)
    screen.note(f"all figures are in {output}, the artifacts in {folder}/")
    screen.emit(document)
    if not reproduced:
        raise CheckpointError("a saved artifact gave other outputs when loaded in a new process")
