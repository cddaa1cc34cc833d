"""``embedl-deploy explain``: what was done at each place, and why the rest was left alone."""

from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Annotated

import typer
from rich.text import Text

from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.cli.options import (
    DEFAULT_BACKEND,
    BackendOption,
    InputsOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    input_shapes,
)
from embedl_deploy.quantize import insert_qdq
from embedl_deploy.report.json_form import json_value
from embedl_deploy.rewriting import SiteRecord
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.transformation import transform

PatternOption = Annotated[
    str, typer.Option(help="Only patterns with this name, like fuse-* (default: all).")
]
NodeOption = Annotated[
    str, typer.Option(help="Only sites at this node or module path, like *layer.0*.")
]


def explain_command(
    model: ModelArgument,
    pattern: PatternOption = "*",
    node: NodeOption = "*",
    backend: BackendOption = DEFAULT_BACKEND,
    inputs: InputsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Says for every site of a pattern in MODEL what was done, or why nothing was."""
    screen = Screen(as_json=as_json)
    with screen.step(f"loading {model}"):
        loaded = load_model(model, input_shapes=input_shapes(inputs), seed=seed)
    with screen.step(f"rewriting for {backend}, and placing quantizers"):
        result = transform(loaded.model, loaded.args, loaded.kwargs, backend=backend)
        records = report_of(insert_qdq(result.model)).passes
    sites = [
        site
        for record in records
        for site in (*record.applied, *record.refused)
        if fnmatchcase(site.pattern, pattern) and _is_at(site, node)
    ]
    for site in sites:
        screen.show(Text(str(site)))
    if not sites:
        screen.show(f"no whole match of {pattern} at {node} in {model} for {backend}")
    for note in result.report.notes:
        screen.show(Text(note))
    screen.emit(
        {
            "model": model,
            "sites": json_value([asdict(site) for site in sites]),
            "notes": list(result.report.notes),
        }
    )


def _is_at(site: SiteRecord, wanted: str) -> bool:
    return fnmatchcase(site.site, wanted) or fnmatchcase(site.module, wanted)
