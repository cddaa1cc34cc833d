"""What an engine is told of a subgraph's inputs: which sizes vary, and how far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import SymInt, Tensor
from torch.export import Dim

from embedl_deploy.lowering.expressions import linear_in
from embedl_deploy.lowering.signature import Size, SymbolRange
from embedl_deploy.lowering.sizes import size_of
from embedl_deploy.lowering.stitch import Piece

VARIES = "varies"
"""Stands for an integer input that may change."""

DeclaredInput = tuple[Size, ...] | str | None
"""The sizes of a tensor, ``VARIES``, or None for anything else."""


@dataclass(frozen=True)
class PieceSpec:
    """The declared sizes of a subgraph's inputs."""

    dynamic_shapes: tuple[object, ...]
    """As in ``torch.export``, one entry per input."""


def spec_of(piece: Piece, symbols: Mapping[str, SymbolRange]) -> PieceSpec | None:
    """Returns the sizes that vary, with the ranges the model declared; None if none does."""
    return spec_from(declared_inputs(piece), symbols)


def declared_inputs(piece: Piece) -> tuple[DeclaredInput, ...]:
    """Returns the recorded sizes of each input of a subgraph, as plain data."""
    placeholders = piece.module.graph.find_nodes(op="placeholder")
    return tuple(_recorded(node.meta.get("val")) for node in placeholders)


def spec_from(
    inputs: Sequence[DeclaredInput], symbols: Mapping[str, SymbolRange]
) -> PieceSpec | None:
    """Returns what an engine is told of inputs of these sizes; None if none of them varies."""
    dims = {name: dim_of(name, known) for name, known in symbols.items()}
    shapes = [_declared(sizes, dims) for sizes in inputs]
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


def _recorded(value: object) -> DeclaredInput:
    if isinstance(value, SymInt):
        return VARIES
    if not isinstance(value, Tensor):
        return None
    return tuple(size_of(size) for size in value.shape)


def _declared(sizes: DeclaredInput, dims: Mapping[str, Dim]) -> object | None:
    if sizes is None:
        return None
    if isinstance(sizes, str):
        return Dim.DYNAMIC
    found = {d: declared_size(size, dims) for d, size in enumerate(sizes)}
    return {d: size for d, size in found.items() if size is not None} or None
