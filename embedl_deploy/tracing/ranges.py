"""The declared range of each symbolic size in a graph."""

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges


def range_constraints(graph: Graph) -> dict[str, tuple[int, int | None]]:
    """Returns smallest and largest value of every symbol in the shapes of the inputs."""
    ranges: dict[str, tuple[int, int | None]] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        sizes: tuple[object, ...] = tuple(value.shape) if isinstance(value, Tensor) else (value,)
        for size in sizes:
            ranges.update(_ranges_of(size))
    return ranges


def declared_ranges(exported: ExportedProgram) -> dict[str, tuple[int, int | None]]:
    """Returns the ranges that the caller declared.

    Export itself assumes sizes of at least 2 while it traces; a declared smaller one counts.
    """
    return {str(symbol): _bounds(found) for symbol, found in exported.range_constraints.items()}


def _bounds(found: ValueRanges) -> tuple[int, int | None]:  # pyright: ignore[reportMissingTypeArgument]  # generic only in torch's stubs
    return int(found.lower), None if found.upper == int_oo else int(found.upper)


def _ranges_of(size: object) -> dict[str, tuple[int, int | None]]:
    symbolic = getattr(size, "node", None)
    environment = getattr(symbolic, "shape_env", None)
    if symbolic is None or environment is None:
        return {}
    found: dict[str, tuple[int, int | None]] = {}
    for symbol in sorted(symbolic.expr.free_symbols, key=str):
        bounds = environment.var_to_range.get(symbol)
        if bounds is not None:
            found[str(symbol)] = _bounds(bounds)
    return found
