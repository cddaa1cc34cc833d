"""The order in which patterns of several phases run."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedl_deploy.rewriting.pattern import Pattern, instances
from embedl_deploy.rewriting.phase import Phase


@dataclass(frozen=True)
class Stage:
    """Patterns that run together."""

    name: str
    """The phase of its patterns."""

    patterns: tuple[Pattern, ...]
    """In the order the user or the backend gave them."""

    until_fixpoint: bool
    """Whether the stage runs again until nothing fits; conversions do."""


def stages_of(patterns: Sequence[type[Pattern] | Pattern]) -> tuple[Stage, ...]:
    """Returns ``patterns`` sorted into stages: conversion, fusion, smooth, quantization."""
    rules = instances(patterns)
    stages: list[Stage] = []
    for phase in Phase:
        chosen = tuple(rule for rule in rules if rule.phase is phase)
        if chosen:
            stages.append(Stage(phase.value, chosen, phase is Phase.CONVERSION))
    return tuple(stages)
