"""Asks for each module of a graph whether a user's skip rule means it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of, module_path, parts_of
from embedl_deploy.quantization.skipping import (
    ModulesToSkip,
    SkipRule,
    describe_rule,
    rule_that_names,
)
from embedl_deploy.rewriting.workspace import named_modules


@dataclass(frozen=True)
class _Family:
    """A module of the graph, its parts and everything that contains one of them."""

    modules: tuple[nn.Module, ...]
    names: tuple[str, ...]


class SkipRules:
    """The rules of one ``ModulesToSkip`` over one model, and which of them were ever met.

    A rule that means a container means everything in it; one that means a part of a fused module
    means the fused module.
    """

    def __init__(self, skip: ModulesToSkip, model: nn.Module) -> None:
        self.skip = skip
        self.model = model
        self.met: dict[str, set[SkipRule]] = {"stub": set(), "weight": set(), "smooth": set()}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module of the model by each of its paths; only rules need them."""
        return dict(named_modules(self.model, remove_duplicate=False))

    @cached_property
    def paths(self) -> dict[int, list[str]]:
        """The paths of each module, by its identity."""
        paths: dict[int, list[str]] = {}
        for path, module in self.modules.items():
            paths.setdefault(id(module), []).append(path)
        return paths

    def reason(self, field: str, node: Node) -> str | None:
        """Returns why ``node`` is skipped in one step, ``None`` if it is not.

        Args:
            field: ``"stub"``, ``"weight"`` or ``"smooth"``.
            node: The node whose operand would be quantized or smoothed.
        """
        rules: frozenset[SkipRule] = getattr(self.skip, field)
        if not rules:
            return None
        family = self._family(node)
        rule = rule_that_names(rules, family.modules, family.names)
        if rule is None:
            return None
        self.met[field].add(rule)
        return f"skip.{field} names it by {describe_rule(rule)}"

    def unmet(self, fields: Iterable[str]) -> Iterator[str]:
        """Yields a sentence for each rule that meant nothing in the model."""
        for field in fields:
            rules: frozenset[SkipRule] = getattr(self.skip, field)
            idle = sorted(describe_rule(rule) for rule in rules - self.met[field])
            for rule in idle:
                yield f"skip.{field} names nothing that could be quantized by {rule}"

    def _family(self, node: Node) -> _Family:
        module = module_of(node)
        own = () if module is None else (module, *parts_of(module))
        paths = dict.fromkeys(path for member in own for path in self.paths.get(id(member), ()))
        paths[module_path(node)] = None
        names = dict.fromkeys(ancestor for path in paths for ancestor in _with_ancestors(path))
        inside = [self.modules[name] for name in names if name in self.modules]
        return _Family((*own, *inside), tuple(names))


def named_rules(skip: ModulesToSkip, model: nn.Module) -> ModulesToSkip:
    """Returns the same rules with modules of ``model`` replaced by their names.

    Names outlive a copy of the model, modules do not.
    """
    if not any(isinstance(rule, nn.Module) for rule in (*skip.stub, *skip.weight, *skip.smooth)):
        return skip
    names: dict[int, str] = {}
    for name, module in named_modules(model):
        names.setdefault(id(module), name)

    def named(rules: frozenset[SkipRule]) -> frozenset[SkipRule]:
        return frozenset(
            names.get(id(rule), rule) if isinstance(rule, nn.Module) else rule for rule in rules
        )

    return ModulesToSkip(named(skip.stub), named(skip.weight), named(skip.smooth))


def _with_ancestors(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
