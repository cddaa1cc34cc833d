"""Sizes that may vary: what a user declares about them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class DynamicDim:
    """A size that may have any value from ``min`` to ``max``; equal names are equal sizes."""

    name: str
    min: int
    max: int

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"the name of a dimension must be an identifier, got {self.name!r}")
        if not all(
            isinstance(size, int) for size in cast("tuple[object, ...]", (self.min, self.max))
        ):
            raise ValueError(
                f"dimension {self.name!r} needs integers, got {self.min!r} and {self.max!r}"
            )
        if not 1 <= self.min <= self.max:
            raise ValueError(
                f"dimension {self.name!r} needs 1 <= min <= max, got min={self.min}, max={self.max}"
            )


@dataclass(frozen=True)
class BatchDim(DynamicDim):
    """The number of items computed at once: what a search for throughput may choose."""

    name: str = field(default="batch", kw_only=True)


DeclaredShapes = Mapping[str, object]
"""By parameter of ``forward``: ``{dimension: DynamicDim(...)}`` for a tensor, and for a nested
argument a dict, list or tuple that holds such entries at the tensors' places."""


def declared_dims(
    declared: DeclaredShapes, parameter: str, value: object
) -> list[Mapping[int, DynamicDim]]:
    """Returns what is declared for each leaf of ``value``, in pytree's order.

    Raises:
        ValueError: The declaration does not fit the value.
    """
    leaves = pytree.tree_leaves(value)
    entry = declared.get(parameter)
    if entry is None:
        return [{}] * len(leaves)
    return list(_declared(entry, value, parameter))


def _declared(entry: object, value: object, name: str) -> Iterator[Mapping[int, DynamicDim]]:
    if isinstance(value, Tensor):
        yield _checked(entry, value, name)
    elif isinstance(value, Mapping):
        of_keys = dict[object, object]()
        if isinstance(entry, Mapping):
            of_keys.update(cast("Mapping[object, object]", entry))
        items = cast("Mapping[object, object]", value)
        _require_known(of_keys, items, name)
        for key, item in items.items():
            yield from _nested(of_keys.get(key), item, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        of_items = cast("Sequence[object]", entry) if isinstance(entry, (list, tuple)) else ()
        if len(of_items) != len(items):
            raise ValueError(
                f"{name} holds {len(items)} values: declare a list with one entry for each (None "
                f"for nothing), got {entry!r:.80}"
            )
        for position, item in enumerate(items):
            yield from _nested(of_items[position], item, f"{name}[{position}]")
    else:
        raise ValueError(f"{name} is a {type(value).__name__}, which has no sizes to declare")


def _nested(entry: object, value: object, name: str) -> Iterator[Mapping[int, DynamicDim]]:
    if entry is None:
        yield from [{}] * len(pytree.tree_leaves(value))
    else:
        yield from _declared(entry, value, name)


def _require_known(
    of_keys: Mapping[object, object], value: Mapping[object, object], name: str
) -> None:
    keys = list(value)
    for key in of_keys:
        if key not in keys:
            raise ValueError(f"{name} has no key {key!r}; it has {keys}")


def _checked(entry: object, value: Tensor, name: str) -> Mapping[int, DynamicDim]:
    found: dict[int, DynamicDim] = {}
    items = cast("Mapping[object, object]", entry).items() if isinstance(entry, Mapping) else ()
    for dimension, dim in items:
        if not isinstance(dimension, int) or not isinstance(dim, DynamicDim):
            break
        if not -value.dim() <= dimension < value.dim():
            raise ValueError(f"{name} has {value.dim()} dimensions, none is number {dimension}")
        found[dimension % value.dim()] = dim
    else:
        if found or isinstance(entry, Mapping):
            return found
    raise ValueError(
        f"{name} is a tensor: declare {{dimension: DynamicDim(name, min, max)}}, got {entry!r:.80}"
    )
