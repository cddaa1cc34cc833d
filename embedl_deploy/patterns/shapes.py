"""Comparing recorded shapes without putting guards on symbolic sizes."""

from collections.abc import Sequence

from torch import SymInt

Size = int | SymInt


def same_size(first: Size, second: Size) -> bool:
    """Tells whether two sizes are equal for every input that the graph takes."""
    if isinstance(first, int) and isinstance(second, int):
        return first == second
    if str(first) == str(second):
        return True
    # Imported late because it takes sympy, which static graphs never need.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(first == second))


def same_shape(first: Sequence[Size], second: Sequence[Size]) -> bool:
    """Tells whether two shapes are equal for every input that the graph takes."""
    return len(first) == len(second) and all(map(same_size, first, second))


def is_one(size: Size) -> bool:
    """Tells whether a size is 1 for every input that the graph takes."""
    return same_size(size, 1)
