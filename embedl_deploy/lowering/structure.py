"""Nested inputs and outputs as data: what ``torch.utils._pytree`` calls a tree spec."""

# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Leaf:
    """One value that is not taken apart."""

    index: int
    """Its place among all leaves, counted from the left."""


@dataclass(frozen=True)
class Branch:
    """A container and what it holds."""

    kind: type
    """The exact class of the container."""

    context: object
    """What pytree needs besides the children to build the container again: keys, a class."""

    children: tuple["Leaf | Branch", ...]
    """The values, in pytree's order."""


Structure = Leaf | Branch


class StructureMismatchError(ValueError):
    """A value does not have the structure it should; the message says where."""


def structure_of(spec: pytree.TreeSpec) -> Structure:
    """Returns the structure that ``spec`` describes, its leaves numbered from 0."""
    structure, _ = _from_spec(spec, 0)
    return structure


def _from_spec(spec: pytree.TreeSpec, first: int) -> tuple[Structure, int]:
    if spec.is_leaf():
        return Leaf(first), first + 1
    children: list[Structure] = []
    for child in spec.children():
        structure, first = _from_spec(child, first)
        children.append(structure)
    # pytree files every named tuple under one function, with the class as context.
    kind = spec.type if isinstance(spec.type, type) else spec.context
    assert isinstance(kind, type)
    return Branch(kind, spec.context, tuple(children)), first


def leaves_of(structure: Structure) -> Iterator[int]:
    """Yields the indices of the leaves, from the left."""
    if isinstance(structure, Leaf):
        yield structure.index
        return
    for child in structure.children:
        yield from leaves_of(child)


def is_namedtuple(kind: type) -> bool:
    """Tells whether pytree takes ``kind`` apart as a named tuple."""
    return hasattr(kind, "_fields") and issubclass(kind, tuple)


def keys_of(branch: Branch) -> list[object] | None:
    """Returns the keys of a dict, None for any other container."""
    if branch.kind is not dict and branch.kind is not OrderedDict:
        return None
    keys = branch.context
    return cast("list[object]", keys) if isinstance(keys, list) else None


Flatten = Callable[[object], tuple[Sequence[object], object]]
Unflatten = Callable[[Sequence[object], object], object]


def registered(kind: type) -> tuple[Flatten, Unflatten]:
    """Returns how pytree takes a class apart and puts it together."""
    found = pytree.SUPPORTED_NODES[_node_type(kind)]
    return cast("Flatten", found.flatten_fn), cast("Unflatten", found.unflatten_fn)


def child_names(branch: Branch) -> list[str]:
    """Returns for each child how code reaches it: ``["key"]``, ``[0]`` or ``.field``."""
    keys = keys_of(branch)
    if keys is not None:
        return [f"[{key!r}]" for key in keys]
    if is_namedtuple(branch.kind):
        fields = cast("tuple[str, ...]", getattr(branch.kind, "_fields", ()))
        return [f".{name}" for name in fields]
    return [f"[{position}]" for position in range(len(branch.children))]


def take_apart(structure: Structure, value: object, name: str) -> Iterator[tuple[int, str, object]]:
    """Yields (leaf index, name, value) for each leaf of ``value``.

    Raises:
        StructureMismatchError: A container is of another class, or holds something else.
    """
    if isinstance(structure, Leaf):
        yield structure.index, name, value
        return
    children, context = _children(structure.kind, value, name)
    expected = child_names(structure)
    children, context = _reordered(structure.context, children, context)
    if context != structure.context or len(children) != len(structure.children):
        raise StructureMismatchError(
            f"{name} must hold {_contents(structure.context, expected)}, "
            f"got {_contents(context, children)}"
        )
    for child, below, inner in zip(structure.children, expected, children, strict=True):
        yield from take_apart(child, inner, name + below)


def put_together(structure: Structure, leaves: Sequence[object]) -> object:
    """Returns the nested value whose leaves are given; the inverse of ``take_apart``."""
    if isinstance(structure, Leaf):
        return leaves[structure.index]
    children = [put_together(child, leaves) for child in structure.children]
    _, unflatten = registered(structure.kind)
    return unflatten(children, structure.context)


def _node_type(kind: type) -> type:
    from_registry = kind in pytree.SUPPORTED_NODES
    if not from_registry and is_namedtuple(kind):
        return cast("type", namedtuple)  # the key under which pytree files all of them
    return kind


def _children(kind: type, value: object, name: str) -> tuple[list[object], object]:
    actual = cast("Callable[[object], type]", pytree._get_node_type)(value)
    expected = _node_type(kind)
    if actual is not expected:
        raise StructureMismatchError(
            f"{name} must be a {kind.__name__}, got {type(value).__name__}"
        )
    flatten, _ = registered(kind)
    children, context = flatten(value)
    return list(children), context


def _reordered(
    expected: object, children: list[object], context: object
) -> tuple[list[object], object]:
    """Returns the children of a dict in the expected order, if it has just those keys."""
    if not isinstance(expected, list) or not isinstance(context, list) or expected == context:
        return children, cast("object", context)
    wanted, found = cast("list[object]", expected), cast("list[object]", context)
    if len(wanted) != len(found) or any(key not in found for key in wanted):
        return children, found
    return [children[found.index(key)] for key in wanted], wanted


def _contents(context: object, children: Sequence[object]) -> str:
    if isinstance(context, list):
        return f"the keys {context}"
    if context is None:
        return f"{len(children)} values"
    return f"{len(children)} values with {context!r}"
