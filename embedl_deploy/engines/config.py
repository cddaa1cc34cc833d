"""What an engine is told: a dataclass that prints, compares and saves itself."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Self

import torch

from embedl_deploy.files import write_aside


@dataclass(frozen=True)
class EngineConfig:
    """Base of the engines' configurations; subclasses are frozen dataclasses of plain values.

    Values are numbers, strings, booleans, None, dtypes, and lists and dicts of these. A subclass
    with other values overrides ``to_dict`` and ``from_dict``.
    """

    def describe(self) -> str:
        """Returns the fields that differ from their defaults, as ``name=value, ...``."""
        shown = self.to_dict()
        changed = [
            f"{field.name}={shown[field.name]!r}"
            for field in fields(self)
            if getattr(self, field.name) != _default(field)
        ]
        return ", ".join(changed)

    def key(self) -> str:
        """Returns the SHA-256 of the sorted JSON: equal configurations, equal keys, everywhere."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Returns all fields as JSON values; dtypes by their names."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Returns the configuration that ``to_dict`` gave ``values`` for.

        Raises:
            ValueError: A field is unknown, or the values clash.
        """
        known = {field.name for field in fields(cls)}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no field {', '.join(unknown)}; "
                f"it has {', '.join(sorted(known))}"
            )
        return cls(**{name: _from_json(value) for name, value in values.items()})

    def to_json(self, path: str | Path) -> None:
        """Writes the fields as JSON.

        Raises:
            OSError: ``path`` cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True) + "\n"
        write_aside(Path(path), text.encode())


def _default(field: "object") -> object:
    default, factory = (
        getattr(field, "default", MISSING),
        getattr(field, "default_factory", MISSING),
    )
    if default is not MISSING:
        return default
    return factory() if callable(factory) else MISSING


def _to_json(value: object) -> object:
    return str(value) if isinstance(value, torch.dtype) else value


def _from_json(value: object) -> object:
    if isinstance(value, str) and value.startswith("torch."):
        found = getattr(torch, value.removeprefix("torch."), None)
        if isinstance(found, torch.dtype):
            return found
    return value
