"""``embedl-deploy explain``: where each pattern fired, and what keeps it from firing elsewhere."""

from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from typing import Annotated

import typer
from rich.text import Text
from torch.fx import GraphModule

from embedl_deploy.backends.registry import resolve_backend
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
from embedl_deploy.explanation import Explanation, explain
from embedl_deploy.report.json_form import json_value
from embedl_deploy.rewriting import Pattern
from embedl_deploy.rewriting.difference import NearMiss
from embedl_deploy.rewriting.records import SiteRecord
from embedl_deploy.transformation import transform

_EVERY = "*"

PatternOption = Annotated[
    str, typer.Option(help="Only patterns with this name, like fuse-* (default: all).")
]
NodeOption = Annotated[
    str,
    typer.Option(
        help="Only places that involve this node, or sites at nodes or modules like *layer.0*."
    ),
]


def explain_command(
    model: ModelArgument,
    pattern: PatternOption = _EVERY,
    node: NodeOption = _EVERY,
    backend: BackendOption = DEFAULT_BACKEND,
    inputs: InputsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Says where each pattern fired in MODEL, was declined, or nearly fits and what differs."""
    screen = Screen(as_json=as_json)
    patterns = _patterns_named(pattern, backend)
    with screen.step(f"loading {model}"):
        loaded = load_model(model, input_shapes=input_shapes(inputs), seed=seed)
    with screen.step(f"rewriting for {backend}"):
        result = transform(loaded.model, loaded.args, loaded.kwargs, backend=backend)
    with screen.step(f"explaining {len(patterns)} patterns"):
        explanations = [_explained(result.model, rule, node) for rule in patterns]
    for explanation in explanations:
        screen.show(Text(str(explanation)))
    for note in result.report.notes:
        screen.show(Text(note))
    screen.emit(
        {
            "model": model,
            "patterns": json_value([asdict(explanation) for explanation in explanations]),
            "notes": list(result.report.notes),
        }
    )


def _patterns_named(wanted: str, backend: str) -> list[type[Pattern]]:
    table = resolve_backend(backend)
    known = (
        *table.conversion_patterns,
        *table.fusion_patterns,
        *table.smooth_patterns,
        *table.quantized_patterns,
    )
    found = [pattern for pattern in dict.fromkeys(known) if fnmatchcase(pattern.name, wanted)]
    if not found:
        names = ", ".join(pattern.name for pattern in known)
        raise typer.BadParameter(f"{backend} has no pattern {wanted!r}; it has {names}")
    return found


def _explained(graph: GraphModule, pattern: type[Pattern], wanted: str) -> Explanation:
    """Returns what became of a pattern; near misses only where it never fired, or at one node."""
    if any(character in wanted for character in "*?["):
        found = explain(graph, pattern)
        misses = () if found.fired else found.near_misses
        return replace(
            found,
            fired=tuple(site for site in found.fired if _is_at(site, wanted)),
            refused=tuple(miss for miss in found.refused if _comes_near(miss, wanted)),
            near_misses=tuple(miss for miss in misses if _comes_near(miss, wanted)),
        )
    try:
        return explain(graph, pattern, wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _is_at(site: SiteRecord, wanted: str) -> bool:
    return fnmatchcase(site.site, wanted) or fnmatchcase(site.module, wanted)


def _comes_near(miss: NearMiss, wanted: str) -> bool:
    names = (miss.site, *miss.matched, *(item.node for item in miss.differences))
    return any(fnmatchcase(name, wanted) for name in names)
