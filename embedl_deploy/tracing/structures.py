# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Takes apart and rebuilds inputs and outputs of classes that torch's pytree does not know.

An object that holds tensors becomes the dictionary of those of its attributes that do; a template
remembers the class and the other attributes. Nothing is registered globally.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from torch import SymBool, SymFloat, SymInt, Tensor, nn
from torch.utils import _pytree as pytree

_DEPTH = 12
_SIZES = (SymInt, SymFloat, SymBool)


@dataclasses.dataclass(frozen=True)
class Template:
    """How to rebuild one value from its stand-in."""

    children: tuple[Template | None, ...]
    """One per element of the stand-in; None where the element is the value itself."""

    class_: type[object] | None = None
    """The class of an object; None where the stand-in has the type of the value."""

    constants: tuple[tuple[str, object], ...] = ()
    """Attributes of the object that hold no tensors."""


def pack(value: object) -> tuple[object, Template | None]:
    """Returns a stand-in for ``value`` that pytree can flatten, and how to get ``value`` back.

    The template is None, and the stand-in ``value`` itself, where nothing had to be done.
    """
    return _pack(value, _DEPTH)


def unpack(value: object, template: Template | None) -> object:
    """Returns what the stand-in ``value`` stands for."""
    if template is None:
        return value
    children, context = _flattened(value)
    rebuilt = [
        unpack(child, inner) for child, inner in zip(children, template.children, strict=True)
    ]
    if template.class_ is None:
        return pytree.SUPPORTED_NODES[_node_type(value)].unflatten_fn(rebuilt, context)
    result = template.class_.__new__(template.class_)
    names = cast("list[str]", context)
    for name, attribute in (*template.constants, *zip(names, rebuilt, strict=True)):
        object.__setattr__(result, name, attribute)
    return result


def named_leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yields the leaves of a nested value with how code reaches them: ``[0]['mask']``.

    Unlike ``tree_flatten_with_path`` it takes classes that were registered without key names, as
    transformers registers its outputs.
    """
    if _node_type(value) not in pytree.SUPPORTED_NODES:
        yield name, value
        return
    children = _flattened(value)[0]
    for label, child in zip(_labels(value, len(children)), children, strict=True):
        yield from named_leaves(child, name + label)


def _labels(value: object, count: int) -> list[str]:
    fields = cast("tuple[str, ...]", getattr(value, "_fields", ()))
    labels = [f".{field}" for field in fields] if isinstance(value, tuple) else []
    if isinstance(value, Mapping):
        labels = [f"[{key!r}]" for key in cast("Mapping[object, object]", value)]
    return labels if len(labels) == count else [f"[{position}]" for position in range(count)]


def _pack(value: object, depth: int) -> tuple[object, Template | None]:
    if depth == 0 or isinstance(
        value, (Tensor, nn.Module, str, bytes, int, float, *_SIZES, type(None))
    ):
        return value, None
    if _node_type(value) in pytree.SUPPORTED_NODES:
        children, context = _flattened(value)
        packed = [_pack(child, depth - 1) for child in children]
        if all(template is None for _, template in packed):
            return value, None
        unflatten = pytree.SUPPORTED_NODES[_node_type(value)].unflatten_fn
        standin = unflatten([child for child, _ in packed], context)
        return standin, Template(tuple(template for _, template in packed))
    return _pack_object(value, depth)


def _pack_object(value: object, depth: int) -> tuple[object, Template | None]:
    attributes = _attributes(value)
    if isinstance(value, type) or not _holds_tensor(value, depth):
        return value, None
    varying = {name: item for name, item in attributes.items() if _holds_tensor(item, depth - 1)}
    constants = tuple((name, item) for name, item in attributes.items() if name not in varying)
    packed = {name: _pack(item, depth - 1) for name, item in varying.items()}
    children = tuple(template for _, template in packed.values())
    standin = {name: item for name, (item, _) in packed.items()}
    return standin, Template(children, type(value), constants)


def _attributes(value: object) -> dict[str, object]:
    if dataclasses.is_dataclass(value) and not hasattr(value, "__dict__"):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names}
    return dict(getattr(value, "__dict__", {}))


def _holds_tensor(value: object, depth: int) -> bool:
    if isinstance(value, Tensor):
        return True
    if depth == 0 or isinstance(
        value, (nn.Module, type, str, bytes, int, float, *_SIZES, type(None))
    ):
        return False
    if _node_type(value) in pytree.SUPPORTED_NODES:
        children: list[object] = list(_flattened(value)[0])
    elif callable(value) and not dataclasses.is_dataclass(value):
        return False
    else:
        children = list(_attributes(value).values())
    return any(_holds_tensor(child, depth - 1) for child in children)


def _node_type(value: object) -> type[object]:
    return cast("Callable[[object], type[object]]", pytree._get_node_type)(value)


def _flattened(value: object) -> tuple[list[object], object]:
    children, context = pytree.SUPPORTED_NODES[_node_type(value)].flatten_fn(value)
    return list(children), context
