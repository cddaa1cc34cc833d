"""Which rewrites a user asked for on the command line, and the stages run accordingly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import typer
from torch.fx import GraphModule

from embedl_deploy.backends.registry import discover_backends, resolve_backend
from embedl_deploy.cli.model_sources import LoadedModel
from embedl_deploy.cli.output_files import require_writable
from embedl_deploy.graph.record import record_of
from embedl_deploy.quantize import ModulesToSkip, QuantConfig
from embedl_deploy.rewriting import Pattern, TransformationPlan
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.phase import Phase
from embedl_deploy.transformation import (
    TransformationResult,
    apply_transformation_plan,
    get_transformation_plan,
)


@dataclass(frozen=True)
class Choice:
    """What to rewrite: words, or a plan that was saved."""

    only: tuple[str, ...] = ()
    """Stages, patterns and modules to rewrite; everything if empty."""

    skip: tuple[str, ...] = ()
    """Stages, patterns and modules to leave alone."""

    plan: Path | None = None
    """A saved plan to replay."""

    strict: bool = True
    """Whether a site of the saved plan that the model no longer has is an error."""

    save_plan: Path | None = None
    """Where to save the plan that is applied."""

    def require_possible(self) -> None:
        """Asserts that the options go together and that the plan can be written.

        Raises:
            BadParameter: A plan and words are given, or --no-strict without a plan.
            OutputPathError: The plan cannot be written.
        """
        if self.plan is not None and (self.only or self.skip):
            raise typer.BadParameter(
                "--plan says what to rewrite: give it, or --only and --skip, not both"
            )
        if self.plan is None and not self.strict:
            raise typer.BadParameter("--no-strict is for a saved plan: give --plan with it")
        require_writable(self.save_plan)


EVERYTHING = Choice()
"""No word and no plan: all that the backend's patterns find."""


def chosen(
    only: list[str] | None,
    skip: list[str] | None,
    plan: Path | None,
    save_plan: Path | None,
    *,
    strict: bool = True,
) -> Choice:
    """Returns what the options of a command say, which was found to be possible."""
    choice = Choice(tuple(only or ()), tuple(skip or ()), plan, strict, save_plan)
    choice.require_possible()
    return choice


def transformed(loaded: LoadedModel, backend: str, choice: Choice) -> TransformationResult:
    """Returns a model after the conversions and fusions that a user chose.

    Raises:
        BadParameter: A word means nothing in the model.
        PlanError: The saved plan does not fit the model.
    """
    model, args, kwargs = loaded.model, loaded.args, loaded.kwargs
    if choice.plan is not None:
        traced = get_transformation_plan(model, args, kwargs, patterns=()).model
        plan = TransformationPlan.load(choice.plan, traced, strict=choice.strict)
    else:
        try:
            plan = get_transformation_plan(
                model, args, kwargs, backend=backend, only=choice.only, skip=choice.skip
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    if choice.save_plan is not None:
        plan.save(choice.save_plan)
    return apply_transformation_plan(plan, args, kwargs)


def quantized_backend(graph: GraphModule, choice: Choice) -> Backend:
    """Returns the backend that ``graph`` was rewritten for, with the quantization chosen."""
    backend = resolve_backend(None, record_of(graph).backend)
    return replace(
        backend,
        smooth_patterns=tuple(_wanted(backend.smooth_patterns, choice)),
        quantized_patterns=tuple(_wanted(backend.quantized_patterns, choice)),
    )


def without_unwanted_modules(
    config: QuantConfig, graph: GraphModule, choice: Choice
) -> QuantConfig:
    """Returns ``config`` that leaves the modules in float which a user did not choose."""
    words = [word for word in choice.skip if not _means_patterns(word)]
    wanted = [word for word in choice.only if not _means_patterns(word)]
    if wanted:
        paths = (str(node.target) for node in graph.graph.nodes if node.op == "call_module")
        words += [path for path in paths if not any(_is_at(path, word) for word in wanted)]
    if not words:
        return config
    skip = ModulesToSkip(
        stub=(*config.skip.stub, *words),
        weight=(*config.skip.weight, *words),
        smooth=(*config.skip.smooth, *words),
    )
    return replace(config, skip=skip)


def _wanted(patterns: Sequence[type[Pattern]], choice: Choice) -> Iterator[type[Pattern]]:
    """Yields the rules of the later stages that no word leaves out."""
    has_modules = any(not _means_patterns(word) for word in choice.only)
    for pattern in patterns:
        names = (pattern.name, pattern.phase.value)
        if any(fnmatchcase(name, word) for name in names for word in choice.skip):
            continue
        chosen = any(fnmatchcase(name, word) for name in names for word in choice.only)
        if chosen or has_modules or not choice.only:
            yield pattern


def _means_patterns(word: str) -> bool:
    """Tells whether a word names a stage, or patterns of some backend."""
    names = [phase.value for phase in Phase]
    for backend in discover_backends().values():
        tables = (backend.conversion_patterns, backend.fusion_patterns)
        tables += (backend.smooth_patterns, backend.quantized_patterns)
        names += [pattern.name for patterns in tables for pattern in patterns]
    return any(fnmatchcase(name, word) for name in names)


def _is_at(path: str, word: str) -> bool:
    return fnmatchcase(path, word) or fnmatchcase(path, f"{word}.*")
