"""``embedl-deploy manifest``: how often each pattern is applied, recorded and checked."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.exit_codes import ExitCode
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.cli.options import (
    DEFAULT_BACKEND,
    BackendOption,
    JsonOption,
    SeedOption,
)
from embedl_deploy.cli.output_files import require_writable
from embedl_deploy.errors import PlanError
from embedl_deploy.report.json_form import json_value
from embedl_deploy.rewriting.manifest import Deviation, Manifest
from embedl_deploy.transformation import get_transformation_plan, transform

manifest_commands = typer.Typer(
    help="Records how often each pattern is applied in which model, and checks that it still is.",
    no_args_is_help=True,
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The manifest, a JSON file.")]
ModelsArgument = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Models, named as for transform.")
]
CheckedArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL...", help="Models of the manifest; all if none is given."),
]


@manifest_commands.command("record")
def record_command(
    file: FileArgument,
    models: ModelsArgument,
    backend: BackendOption = DEFAULT_BACKEND,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Writes to FILE how often each pattern is applied in each MODEL; others in it are kept."""
    screen = Screen(as_json=as_json)
    require_writable(file)
    manifest = Manifest.load(file) if file.is_file() else Manifest(backend)
    if manifest.backend != backend:
        raise typer.BadParameter(
            f"{file} is of backend {manifest.backend}, got --backend {backend}: one file a backend"
        )
    for model in models:
        with screen.step(f"rewriting {model} for {backend}"):
            loaded = load_model(model, seed=seed)
            result = transform(loaded.model, loaded.args, loaded.kwargs, backend=backend)
        manifest.record(model, result.report)
        counts = ", ".join(f"{count} {name}" for name, count in manifest.models[model].items())
        screen.show(Text(f"{model}: {counts or 'nothing is rewritten'}"))
    manifest.save(file)
    screen.emit({"file": str(file), "backend": backend, "models": json_value(manifest.models)})


@manifest_commands.command("check")
def check_command(
    file: FileArgument,
    models: CheckedArgument = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Checks that each MODEL of FILE is rewritten as recorded; explains what was lost."""
    screen = Screen(as_json=as_json)
    manifest = Manifest.load(file)
    unknown = [model for model in models or () if model not in manifest.models]
    if unknown:
        known = ", ".join(manifest.models) or "none"
        raise PlanError(f"{file} does not hold {', '.join(unknown)}; it holds {known}: record it")
    deviations: list[Deviation] = []
    for model in models or list(manifest.models):
        with screen.step(f"checking {model}"):
            deviations += _deviations(manifest, model, seed)
    for deviation in deviations:
        screen.show(Text(str(deviation)))
    lost = [deviation for deviation in deviations if deviation.is_loss]
    if not deviations:
        screen.show("every model is rewritten as recorded")
    screen.emit(
        {
            "file": str(file),
            "lost": json_value([_entry(deviation) for deviation in lost]),
            "gained": json_value([_entry(item) for item in deviations if not item.is_loss]),
        }
    )
    if lost:
        raise typer.Exit(int(ExitCode.LOSS))


def _deviations(manifest: Manifest, model: str, seed: int) -> tuple[Deviation, ...]:
    loaded = load_model(model, seed=seed)
    traced = get_transformation_plan(loaded.model, loaded.args, loaded.kwargs, patterns=()).model
    backend = resolve_backend(manifest.backend)
    return manifest.check(model, traced, (*backend.conversion_patterns, *backend.fusion_patterns))


def _entry(deviation: Deviation) -> dict[str, object]:
    return {
        "model": deviation.model,
        "pattern": deviation.pattern,
        "expected": deviation.expected,
        "found": deviation.found,
        "explanation": None if deviation.explanation is None else str(deviation.explanation),
    }
