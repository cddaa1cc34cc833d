"""Values of a graph as JSON, and back; nothing but plain values can come out of a file."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch.fx import Node

from embedl_deploy.errors import CheckpointError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_NAMED = {
    "dtype": {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "memory_format": {
        name: value for name, value in vars(torch).items() if isinstance(value, torch.memory_format)
    },
    "layout": {
        name: value for name, value in vars(torch).items() if isinstance(value, torch.layout)
    },
}
_DEPTH = 64


def encode(value: object) -> Json:
    """Returns ``value`` as JSON; nodes become their names.

    Raises:
        CheckpointError: The value is of a class that has no form as data.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Node):
        return {"$node": value.name}
    if isinstance(value, (list, tuple, dict, slice)):
        return _encode_container(cast("object", value))
    return _encode_named(value)


def _encode_named(value: object) -> Json:
    if isinstance(value, complex):
        return {"$complex": [value.real, value.imag]}
    if isinstance(value, torch.device):
        return {"$device": str(value)}
    for kind, known in _NAMED.items():
        for name, named in known.items():
            if named is value:
                return {f"${kind}": name}
    raise CheckpointError(
        f"a value of class {type(value).__name__} cannot be saved as data: {value!r:.80}"
    )


def _encode_container(value: object) -> Json:
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value)
        return {"$dict": [[encode(key), encode(item)] for key, item in pairs.items()]}
    if isinstance(value, slice):
        parts = cast("tuple[object, ...]", (value.start, value.stop, value.step))
        return {"$slice": [encode(part) for part in parts]}
    items = [encode(item) for item in cast("Sequence[object]", value)]
    # torch.Size and fx's immutable lists are spelled as what they are equal to.
    return {"$tuple": items} if isinstance(value, tuple) else items


def decode(value: Json, nodes: Mapping[str, Node] | None = None, depth: int = 0) -> object:
    """Returns what ``encode`` was given.

    Raises:
        CheckpointError: The JSON is none that ``encode`` writes.
    """
    if depth > _DEPTH:
        raise CheckpointError(f"a value is nested more than {_DEPTH} deep")
    if isinstance(value, list):
        return [decode(item, nodes, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise CheckpointError(f"not a saved value: {str(value)[:80]}")
    ((kind, content),) = value.items()
    if kind == "$node":
        if nodes is None or not isinstance(content, str) or content not in nodes:
            raise CheckpointError(f"a saved graph reads node {content!r} before it is made")
        return nodes[content]
    if kind in ("$tuple", "$slice", "$dict", "$complex"):
        return _decode_container(kind, content, nodes, depth)
    return _decode_named(kind, content)


def _decode_container(
    kind: str, content: Json, nodes: Mapping[str, Node] | None, depth: int
) -> object:
    items = decode(content, nodes, depth + 1)
    if not isinstance(items, list):
        raise CheckpointError(f"a saved {kind[1:]} must hold a list")
    parts = cast("list[object]", items)
    try:
        return _BUILDERS[kind](parts)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a saved {kind[1:]} is damaged: {error}") from error


_BUILDERS: Mapping[str, Callable[[list[object]], object]] = {
    "$tuple": tuple,
    "$slice": lambda parts: slice(*parts),
    "$dict": lambda parts: dict(cast("list[tuple[object, object]]", parts)),
    "$complex": lambda parts: complex(*cast("list[float]", parts)),
}


def _decode_named(kind: str, content: Json) -> object:
    if not isinstance(content, str):
        raise CheckpointError(f"not a saved value: {kind} of {str(content)[:80]}")
    if kind == "$float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "$device":
        try:
            return torch.device(content)
        except RuntimeError as error:
            raise CheckpointError(f"not a device: {content!r}") from error
    known: Mapping[str, object] = _NAMED.get(kind[1:], {})
    if content not in known:
        raise CheckpointError(f"not a saved value: {kind} {content!r}")
    return known[content]
