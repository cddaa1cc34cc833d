"""Finds the modules of a pipeline object: in attributes, lists, dicts, closures and modules."""

import functools
import types
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from torch import Tensor, nn

from embedl_deploy.tuning.module import Module

_DEPTH = 6
_PLAIN = (str, bytes, int, float, complex, bool, type, type(None), Tensor, types.ModuleType)

Kind = Literal["attribute", "item", "cell", "fixed"]


@dataclass(frozen=True)
class Place:
    """Where a module is referred to."""

    path: str
    """How code reaches it from the pipeline: ``.encoder``, ``.stages[0]``; "" is the pipeline."""

    owner: object
    key: object
    kind: Kind

    def put(self, value: object) -> None:
        """Makes the place refer to ``value``.

        Raises:
            ValueError: It is in a tuple, or the pipeline itself.
        """
        if self.kind == "attribute":
            setattr(self.owner, str(self.key), value)
        elif self.kind == "item":
            cast("dict[object, object]", self.owner)[self.key] = value
        elif self.kind == "cell":
            cast("types.CellType", self.owner).cell_contents = value
        else:
            raise ValueError(f"{self.path or 'the object itself'} cannot be replaced: it is fixed")


@dataclass
class Located:
    """A module, and everywhere it is referred to."""

    module: nn.Module
    depth: int
    """0: not inside another module."""

    parent: nn.Module | None
    places: list[Place] = field(default_factory=list[Place])

    @property
    def name(self) -> str:
        """Its first path without the leading dot; its class if it is the pipeline itself."""
        return self.places[0].path.lstrip(".") or type(self.module).__name__


def modules_of(pipeline: object) -> list[Located]:
    """Returns every module of ``pipeline`` once, in the order in which a reader meets them."""
    found: dict[int, Located] = {}
    seen: dict[int, object] = {}
    root = Place("", None, None, "fixed")
    _walk(pipeline, root, _Context(found, seen, None, 0), _DEPTH)
    return list(found.values())


def wrapped_in(pipeline: object) -> list[tuple[Module, Located]]:
    """Returns the wrapped modules of ``pipeline``."""
    located = modules_of(pipeline)
    return [(found.module, found) for found in located if isinstance(found.module, Module)]


@dataclass(frozen=True)
class _Context:
    found: dict[int, Located]
    seen: dict[int, object]
    parent: nn.Module | None
    depth: int


def _walk(value: object, place: Place, context: _Context, depth: int) -> None:
    if isinstance(value, nn.Module):
        _note_module(value, place, context)
        return
    if depth == 0 or isinstance(value, _PLAIN) or id(value) in context.seen:
        return
    context.seen[id(value)] = value
    for child, below in _children(value, place.path, is_root=place.kind == "fixed"):
        _walk(child, below, context, depth - 1)


def _note_module(module: nn.Module, place: Place, context: _Context) -> None:
    known = context.found.get(id(module))
    if known is not None:
        known.places.append(place)
        return
    context.found[id(module)] = Located(module, context.depth, context.parent, [place])
    if isinstance(module, Module):
        return
    inside = _Context(context.found, context.seen, module, context.depth + 1)
    children = cast("Mapping[str, nn.Module | None]", vars(module)["_modules"])
    for name, child in children.items():
        if child is not None:
            _note_module(child, Place(f"{place.path}.{name}", module, name, "attribute"), inside)


def _children(value: object, path: str, *, is_root: bool) -> Iterator[tuple[object, Place]]:
    if isinstance(value, (dict, UserDict, list, tuple)):
        kind: Kind = "fixed" if isinstance(value, tuple) else "item"
        owner = cast("object", value)
        for key, item in _items(owner):
            yield item, Place(f"{path}[{key!r}]", owner, key, kind)
    elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        if is_root:
            yield from _of_callable(cast("Callable[..., object]", value), path)
    else:
        for name, item in list(_attributes(value).items()):
            yield item, Place(f"{path}.{name}", value, name, "attribute")


def _items(container: object) -> list[tuple[object, object]]:
    if isinstance(container, (dict, UserDict)):
        return list(cast("Mapping[object, object]", container).items())
    return list(enumerate(cast("list[object]", container)))


def _of_callable(value: Callable[..., object], path: str) -> Iterator[tuple[object, Place]]:
    """Yields what the function that was given as the pipeline refers to."""
    if isinstance(value, functools.partial):
        parts = cast("tuple[object, ...]", (value.func, *value.args, *value.keywords.values()))
        for position, item in enumerate(parts):
            yield item, Place(f"{path}({position})", cast("object", value), position, "fixed")
    elif isinstance(value, types.MethodType):
        yield value.__self__, Place(f"{path}.__self__", value, None, "fixed")
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield _content(cell), Place(f"{path}.{name}", cell, name, "cell")
        for name in value.__code__.co_names:
            if name in value.__globals__:
                place = Place(f"{path}.{name}", value.__globals__, name, "item")
                yield cast("object", value.__globals__[name]), place


def _content(cell: types.CellType) -> object:
    try:
        return cast("object", cell.cell_contents)
    except ValueError:  # a variable that has no value yet
        return None


def _attributes(value: object) -> dict[str, object]:
    found = getattr(value, "__dict__", None)
    return cast("dict[str, object]", found) if isinstance(found, dict) else {}
