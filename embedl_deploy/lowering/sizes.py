"""Reads symbolic sizes, their ranges and the conditions on them out of a traced graph."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from torch import SymInt, Tensor
from torch.fx import Node

from embedl_deploy.lowering.expressions import evaluate, linear_in, symbols_in
from embedl_deploy.lowering.signature import InputLeaf, Size, SizeInput, SymbolRange, TensorInput

if TYPE_CHECKING:  # importing sympy takes as long as the whole package
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

_UNBOUNDED = 2**31
"""Upper bounds from here on mean that there is none."""


def size_of(value: int | SymInt) -> Size:
    """Returns a recorded size as a number, or as the text of its expression."""
    if isinstance(value, int):
        return value
    text = str(cast("object", value.node.expr))
    return int(text) if text.lstrip("-").isdigit() else text


def symbol_sources(inputs: Sequence[InputLeaf]) -> dict[str, str]:
    """Returns for each symbol the dimension that determines it, as messages name it."""
    sources: dict[str, str] = {}
    for leaf, dimension, size in _declared_sizes(inputs):
        if isinstance(size, int):
            continue
        place = leaf.name if dimension is None else f"{leaf.name}: dimension {dimension}"
        for symbol in symbols_in(size):
            if size == symbol:
                sources[symbol] = sources.get(symbol, place)
    for leaf, dimension, size in _declared_sizes(inputs):
        linear = None if isinstance(size, int) else linear_in(size)
        if linear is not None:
            sources.setdefault(linear[0], f"{leaf.name}: dimension {dimension} ({size})")
    return sources


def _declared_sizes(inputs: Sequence[InputLeaf]) -> list[tuple[InputLeaf, int | None, Size]]:
    found: list[tuple[InputLeaf, int | None, Size]] = []
    for leaf in inputs:
        if isinstance(leaf, SizeInput):
            found.append((leaf, None, leaf.size))
        elif isinstance(leaf, TensorInput):
            found.extend((leaf, dimension, size) for dimension, size in enumerate(leaf.shape))
    return found


def symbol_ranges(
    inputs: Sequence[InputLeaf],
    examples: Sequence[object],
    ranges: Mapping[str, tuple[int, int | None]],
) -> dict[str, SymbolRange]:
    """Returns the range of each symbol that the sizes of the inputs determine."""
    found: dict[str, SymbolRange] = {}
    for leaf, value in zip(inputs, examples, strict=True):
        for size, actual in _actual_sizes(leaf, value):
            linear = linear_in(size)
            if linear is None or linear[0] in found:
                continue
            symbol, factor, offset = linear
            lower, upper = ranges.get(symbol, (0, None))
            if upper is not None and upper >= _UNBOUNDED:
                upper = None
            found[symbol] = SymbolRange(lower, upper, (actual - offset) // factor)
    return found


def _actual_sizes(leaf: InputLeaf, value: object) -> list[tuple[str, int]]:
    if isinstance(leaf, SizeInput) and isinstance(value, int):
        return [(leaf.size, value)]
    if isinstance(leaf, TensorInput) and isinstance(value, Tensor):
        pairs = zip(leaf.shape, value.shape, strict=True)
        return [(size, actual) for size, actual in pairs if isinstance(size, str)]
    return []


def constraints_of(
    placeholders: Sequence[Node], symbols: Mapping[str, SymbolRange]
) -> tuple[str, ...]:
    """Returns the conditions on symbols that tracing came to rely on.

    These are equations (divisibility, mostly) and comparisons of several symbols. A bound on one
    symbol is in its range already, and ``Ne(s0, 1)`` only says how the example was. A condition
    that the example itself does not satisfy, that speaks of other symbols, or that is no plain
    arithmetic is left out: it cannot be checked.
    """
    environment = _shape_environment(placeholders)
    if environment is None:
        return ()
    example = {name: symbol.example for name, symbol in symbols.items()}
    texts = dict.fromkeys(str(guard.expr) for guard in environment.guards)
    return tuple(text for text in texts if _can_be_checked(text, example))


def recorded_ranges(placeholders: Sequence[Node]) -> dict[str, tuple[int, int | None]]:
    """Returns the ranges that tracing left with the inputs' recorded values."""
    environment = _shape_environment(placeholders)
    if environment is None:
        return {}
    found: dict[str, tuple[int, int | None]] = {}
    for symbol, bounds in environment.var_to_range.items():
        upper = None if bounds.upper >= _UNBOUNDED else int(bounds.upper)
        found[str(symbol)] = (int(bounds.lower), upper)
    return found


def _shape_environment(placeholders: Sequence[Node]) -> "ShapeEnv | None":
    for node in placeholders:
        value = node.meta.get("val")
        mode = getattr(value, "fake_mode", None)
        environment = getattr(mode, "shape_env", None)
        if environment is not None:
            return cast("ShapeEnv", environment)
    return None


def _can_be_checked(text: str, example: Mapping[str, int]) -> bool:
    try:
        names = symbols_in(text)
        if not names or not all(name in example for name in names) or text.startswith("Ne("):
            return False
        return (text.startswith("Eq(") or len(names) > 1) and bool(evaluate(text, example))
    except ValueError:
        return False
