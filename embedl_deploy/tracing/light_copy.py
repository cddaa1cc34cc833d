"""Copies the structure of a model and shares its tensors: tracing never touches the original."""

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

_CONTAINERS = (list, tuple, set, frozenset)
_DEPTH = 6
_REFUSALS = (
    TypeError,
    RuntimeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    ValueError,
    OSError,
)
"""How attributes say that they cannot be deep-copied."""


def light_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of ``model`` that holds the same tensors in new modules.

    Hooks, train and eval flags, bound methods and plain attributes come along. Where an attribute
    refuses to be deep-copied (a lock, an open file, a session) the whole copy falls back to one
    that copies modules and the lists, dicts and bound methods that lead to them,
    and shares the rest.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        _collect_tensors(vars(module), memo, {}, _DEPTH)
    try:
        copied = copy.deepcopy(model, memo)
    except _REFUSALS:
        return _StructuralCopy(model).root()
    return copied


def _collect_tensors(
    value: object, memo: dict[int, object], seen: dict[int, object], depth: int
) -> None:
    """Notes every tensor reachable from ``value`` as its own copy."""
    if isinstance(value, Tensor):
        memo[id(value)] = value
        return
    if depth == 0 or id(value) in seen or isinstance(value, (str, bytes, int, float, type)):
        return
    seen[id(value)] = value
    for item in _inner(value):
        _collect_tensors(item, memo, seen, depth - 1)


def _inner(value: object) -> list[object]:
    """Returns what ``value`` holds; modules are visited by themselves."""
    if isinstance(value, dict):
        return list(cast("dict[object, object]", value).values())
    if isinstance(value, _CONTAINERS):
        return list(cast("list[object]", value))
    if isinstance(value, (nn.Module, types.ModuleType, types.FunctionType)):
        return []
    return list(cast("dict[str, object]", getattr(value, "__dict__", {})).values())


class _StructuralCopy:
    """Copies modules and what leads to them; shares everything else."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.copies: dict[int, nn.Module] = {}
        for module in model.modules():
            self.copies[id(module)] = module.__class__.__new__(module.__class__)

    def root(self) -> nn.Module:
        for module in self.model.modules():
            target = self.copies[id(module)]
            for name, value in vars(module).items():
                target.__dict__[name] = self.moved(value, _DEPTH)
        return self.copies[id(self.model)]

    def moved(self, value: object, depth: int) -> object:
        """Returns ``value`` with every module in it replaced by its copy."""
        if isinstance(value, nn.Module):
            return self.copies.get(id(value), value)
        if depth == 0:
            return value
        if isinstance(value, types.MethodType):
            owner = self.moved(value.__self__, depth - 1)
            return types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            arguments = [self.moved(item, depth - 1) for item in value.args]
            keywords = {name: self.moved(item, depth - 1) for name, item in value.keywords.items()}
            return functools.partial(self.moved(value.func, depth - 1), *arguments, **keywords)  # pyright: ignore[reportArgumentType]  # a moved callable is callable
        return self._moved_container(value, depth)

    def _moved_container(self, value: object, depth: int) -> object:
        kind = cast("Callable[[object], object]", type(value))
        if type(value) in (dict, OrderedDict):
            items = cast("dict[object, object]", value).items()
            return kind([(name, self.moved(item, depth - 1)) for name, item in items])
        if type(value) in _CONTAINERS:
            return kind([self.moved(item, depth - 1) for item in cast("list[object]", value)])
        return value
