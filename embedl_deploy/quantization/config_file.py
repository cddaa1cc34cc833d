"""A ``QuantConfig`` as JSON and back, to be reviewed in a change and used again."""

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from torch import nn

from embedl_deploy.errors import CheckpointError
from embedl_deploy.files import write_aside
from embedl_deploy.quantization.config import QuantConfig

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

T = TypeVar("T")

_TYPE = "torch.nn"


def config_as_json(config: QuantConfig) -> dict[str, Json]:
    """Returns ``config`` as values that JSON has; ``config_from_json`` gives the same again.

    Raises:
        ValueError: A skip rule is a module, or a module class of one's own: name it instead.
    """
    return cast("dict[str, Json]", _plain(config))


def config_from_json(document: object) -> QuantConfig:
    """Returns the configuration that ``config_as_json`` wrote.

    What the document leaves out has its default.

    Raises:
        CheckpointError: The document holds something else; the message says where.
    """
    return _built(QuantConfig, document, "config")


def save_config(config: QuantConfig, path: str | Path) -> None:
    """Writes ``config`` as JSON, whole or not at all."""
    text = json.dumps(config_as_json(config), indent=2) + "\n"
    write_aside(Path(path), text.encode())


def load_config(path: str | Path) -> QuantConfig:
    """Returns the configuration that ``save_config`` wrote.

    Raises:
        CheckpointError: The file cannot be read, or holds something else.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} holds no configuration: {error}") from error
    return config_from_json(document)


def _plain(value: object) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return cast("Json", value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): _plain(item) for key, item in items}
    if isinstance(value, frozenset):
        rules = [_plain(rule) for rule in cast("frozenset[object]", value)]
        return cast("Json", sorted(rules, key=json.dumps))
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    if isinstance(value, type) and getattr(nn, value.__name__, None) is value:
        return {_TYPE: value.__name__}
    raise ValueError(
        f"JSON has no place for {value!r}: skip modules by name, such as 'encoder.*.fc1', or by a "
        "class of torch.nn"
    )


def _built(kind: type[T], document: object, where: str) -> T:
    """Returns a dataclass from a JSON object.

    Raises:
        CheckpointError: It is none, has unknown keys, or values that the class refuses.
    """
    if not isinstance(document, dict):
        raise CheckpointError(f"{where} must be a JSON object, got {document!r:.60}")
    given = cast("dict[str, object]", document)
    hints = cast("dict[str, object]", get_type_hints(kind))
    unknown = [key for key in given if key not in hints]
    if unknown:
        known = ", ".join(hints)
        raise CheckpointError(f"{where} has no {unknown[0]!r}; it knows {known}")
    values = {key: _value(hints[key], item, f"{where}.{key}") for key, item in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _value(hint: object, item: object, where: str) -> object:
    """Returns what a JSON value stands for where the type ``hint`` is wanted."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not types.NoneType]
        return None if item is None else _value(members[0], item, where)
    if get_origin(hint) is frozenset:
        return frozenset(_rule(rule, where) for rule in _list(item, where))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _member(hint, item, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return _built(cast("type[object]", hint), item, where)
    kind = cast("type[object]", hint)
    is_whole = kind is float and isinstance(item, int) and not isinstance(item, bool)
    if isinstance(item, kind) or is_whole:
        return item
    raise CheckpointError(f"{where} must be a {kind.__name__}, got {item!r:.60}")


def _list(item: object, where: str) -> list[object]:
    if not isinstance(item, list):
        raise CheckpointError(f"{where} must be a list, got {item!r:.60}")
    return cast("list[object]", item)


def _member(kind: type[Enum], item: object, where: str) -> Enum:
    try:
        return kind(item)
    except ValueError as error:
        known = ", ".join(str(member.value) for member in kind)
        raise CheckpointError(f"{where} must be one of {known}, got {item!r:.60}") from error


def _rule(rule: object, where: str) -> str | type[nn.Module]:
    if isinstance(rule, str):
        return rule
    name = cast("dict[str, object]", rule).get(_TYPE) if isinstance(rule, dict) else None
    found: object = getattr(nn, name, None) if isinstance(name, str) else None
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise CheckpointError(f"{where} takes names and classes of torch.nn, got {rule!r:.60}")
    return found
