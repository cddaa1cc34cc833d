"""The declared range of each symbolic size in a graph."""

import sys
from typing import TYPE_CHECKING, cast

from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.fx import Graph

if TYPE_CHECKING:  # importing sympy takes as long as the whole package
    import sympy
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.utils._sympy.value_ranges import ValueRanges


def range_constraints(graph: Graph) -> dict[str, tuple[int, int | None]]:
    """Returns smallest and largest value of every symbol in the shapes of the inputs."""
    ranges: dict[str, tuple[int, int | None]] = {}
    for node in graph.find_nodes(op="placeholder"):
        value: object = node.meta.get("val")
        sizes: tuple[object, ...] = tuple(value.shape) if isinstance(value, Tensor) else (value,)
        for size in sizes:
            ranges.update(_ranges_of(size))
    return ranges


def declared_ranges(exported: ExportedProgram) -> dict[str, tuple[int, int | None]]:
    """Returns the ranges that the caller declared.

    Export itself assumes sizes of at least 2 while it traces; a declared smaller one counts.
    """
    declared = cast("dict[object, ValueRanges[sympy.Expr]]", exported.range_constraints)
    return {str(symbol): _bounds(found) for symbol, found in declared.items()}


def _bounds(found: "ValueRanges[sympy.Expr]") -> tuple[int, int | None]:
    return _integer(found.lower, -sys.maxsize) or 0, _integer(found.upper, None)


def _integer(bound: object, unbounded: int | None) -> int | None:
    """Returns ``bound`` as an integer; torch's own infinities and sympy's are no integers."""
    if isinstance(bound, int) or getattr(bound, "is_Integer", False):
        return int(cast("int", bound))
    return unbounded


def _ranges_of(size: object) -> dict[str, tuple[int, int | None]]:
    if not isinstance(size, SymInt):
        return {}
    environment = cast("ShapeEnv", size.node.shape_env)
    found: dict[str, tuple[int, int | None]] = {}
    for symbol in sorted(cast("set[sympy.Symbol]", size.node.expr.free_symbols), key=str):
        bounds = environment.var_to_range.get(symbol)
        if bounds is not None:
            found[str(symbol)] = _bounds(bounds)
    return found
