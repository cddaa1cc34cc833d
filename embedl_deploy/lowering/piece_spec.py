"""What an engine is told of a subgraph's inputs: which sizes vary, and how far."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import SymInt, Tensor
from torch.export import Dim

from embedl_deploy.lowering.expressions import linear_in
from embedl_deploy.lowering.signature import Size, SymbolRange
from embedl_deploy.lowering.sizes import size_of
from embedl_deploy.lowering.stitch import Piece


@dataclass(frozen=True)
class PieceSpec:
    """The declared sizes of a subgraph's inputs."""

    dynamic_shapes: tuple[object, ...]
    """As in ``torch.export``, one entry per input."""


def spec_of(piece: Piece, symbols: Mapping[str, SymbolRange]) -> PieceSpec | None:
    """Returns the sizes that vary, with the ranges the model declared; None if none does."""
    dims = {name: dim_of(name, known) for name, known in symbols.items()}
    placeholders = piece.module.graph.find_nodes(op="placeholder")
    shapes = [_declared(node.meta.get("val"), dims) for node in placeholders]
    return PieceSpec(tuple(shapes)) if any(shapes) else None


def dim_of(name: str, known: SymbolRange) -> Dim:
    """Returns the ``Dim`` of a symbol."""
    return Dim(name, min=known.lower, max=known.upper)


def declared_size(size: Size, dims: Mapping[str, Dim]) -> object | None:
    """Returns how ``torch.export`` takes a size: None, a ``Dim``, a derived one, or a hint."""
    if isinstance(size, int):
        return None
    linear = linear_in(size)
    if linear is None or linear[0] not in dims:
        return Dim.DYNAMIC
    symbol, factor, offset = linear
    scaled = dims[symbol] if factor == 1 else factor * dims[symbol]
    return scaled if offset == 0 else scaled + offset


def _declared(value: object, dims: Mapping[str, Dim]) -> object | None:
    if isinstance(value, SymInt):
        return Dim.DYNAMIC
    if not isinstance(value, Tensor):
        return None
    sizes = {d: declared_size(size_of(size), dims) for d, size in enumerate(value.shape)}
    return {d: size for d, size in sizes.items() if size is not None} or None
