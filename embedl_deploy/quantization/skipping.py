"""Which modules a user wants left in float, and the test whether one of them is meant."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

SkipRule: TypeAlias = nn.Module | type[nn.Module] | str
"""A module itself, a class of modules, or a pattern on names such as ``"encoder.*.fc1"``."""


@dataclass(frozen=True, init=False)
class ModulesToSkip:
    """Modules that one step of quantization leaves alone."""

    stub: frozenset[SkipRule] = frozenset()
    """No quantizer on the inputs of these."""

    weight: frozenset[SkipRule] = frozenset()
    """The weights of these stay in float."""

    smooth: frozenset[SkipRule] = frozenset()
    """No smoothing through these."""

    def __init__(
        self,
        stub: Iterable[SkipRule] = (),
        weight: Iterable[SkipRule] = (),
        smooth: Iterable[SkipRule] = (),
    ) -> None:
        for name, rules in (("stub", stub), ("weight", weight), ("smooth", smooth)):
            object.__setattr__(self, name, _checked(name, rules))

    def translated(self, copies: Mapping[int, object]) -> "ModulesToSkip":
        """Returns the same rules about a copy of the model.

        Args:
            copies: From the ``id`` of each original module to its copy, as
                ``copy.deepcopy`` leaves it in its memo.
        """
        return replace(
            self,
            stub=_translated(self.stub, copies),
            weight=_translated(self.weight, copies),
            smooth=_translated(self.smooth, copies),
        )


def rule_that_names(
    rules: Iterable[SkipRule], modules: Iterable[nn.Module], names: Iterable[str]
) -> SkipRule | None:
    """Returns the first rule that means one of ``modules`` or ``names``, or ``None``.

    Args:
        rules: The rules of one field of ``ModulesToSkip``.
        modules: A module of the graph and the parts it was fused from.
        names: The fully qualified names of those.
    """
    modules, names = tuple(modules), tuple(names)
    for rule in sorted(rules, key=_rank):
        if isinstance(rule, str):
            if any(fnmatchcase(name, rule) for name in names):
                return rule
        elif isinstance(rule, type):
            if any(isinstance(module, rule) for module in modules):
                return rule
        elif any(module is rule for module in modules):
            return rule
    return None


def describe_rule(rule: SkipRule) -> str:
    """Returns a rule as the report prints it."""
    if isinstance(rule, str):
        return f"name pattern {rule!r}"
    if isinstance(rule, type):
        return f"type {rule.__name__}"
    return f"module {rule}"


def _is_rule(rule: object) -> bool:
    if isinstance(rule, type):
        return issubclass(rule, nn.Module)
    return isinstance(rule, str | nn.Module)


def _rank(rule: SkipRule) -> str:
    return rule if isinstance(rule, str) else getattr(rule, "__name__", "")


def _checked(name: str, rules: Iterable[SkipRule]) -> frozenset[SkipRule]:
    if isinstance(rules, str | nn.Module | type):
        raise ValueError(f"{name} must be a set of rules, got the single rule {rules!r}")
    checked = frozenset(rules)
    for rule in checked:
        if not _is_rule(rule):
            raise ValueError(f"{name} takes modules, module types and name patterns, got {rule!r}")
    return checked


def _translated(rules: frozenset[SkipRule], copies: Mapping[int, object]) -> frozenset[SkipRule]:
    translated: list[SkipRule] = []
    for rule in rules:
        copy = copies.get(id(rule))
        translated.append(copy if isinstance(copy, nn.Module) else rule)
    return frozenset(translated)
