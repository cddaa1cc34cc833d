"""What tells one recorded graph from another, and the sizes that it is called with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from embedl_deploy.tuning.dimensions import BatchDim, DynamicDim


@dataclass(frozen=True)
class TensorSpec:
    """An input that is a tensor."""

    name: str
    """How the caller reaches it: ``x``, ``batch['mask']``."""

    dtype: torch.dtype
    rank: int


@dataclass(frozen=True)
class ConstantSpec:
    """An input that is a Python value; another value is another graph."""

    name: str
    kind: str
    """The name of its class."""

    text: str
    """Its ``repr``."""


@dataclass(frozen=True)
class SizeRange:
    """The sizes of one dimension: all that were seen, or what was declared."""

    lower: int
    upper: int
    symbol: str | None = None
    """Dimensions with the same symbol are always of the same size; None: it never varies."""

    is_batch: bool = False


@dataclass(frozen=True)
class GraphSpec:
    """One structure of inputs; two are equal when structure, ranks, dtypes and constants are."""

    inputs: tuple[TensorSpec | ConstantSpec, ...]
    structure: str
    """How the inputs are nested."""

    sizes: tuple[tuple[SizeRange, ...], ...] = field(default=(), compare=False)
    """For each tensor among the inputs, its dimensions."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The inputs that are tensors, in order."""
        return tuple(spec for spec in self.inputs if isinstance(spec, TensorSpec))

    @property
    def symbols(self) -> dict[str, SizeRange]:
        """Returns the sizes that vary, by symbol."""
        found: dict[str, SizeRange] = {}
        for sizes in self.sizes:
            found.update({size.symbol: size for size in sizes if size.symbol is not None})
        return found

    def range_ends(self) -> list[dict[str, int]]:
        """Returns the smallest and the largest sizes, by symbol; nothing if none varies."""
        symbols = self.symbols
        if not symbols:
            return []
        return [
            {name: size.lower for name, size in symbols.items()},
            {name: size.upper for name, size in symbols.items()},
        ]

    def describe(self) -> str:
        """Returns the inputs for people: ``x: float32[batch=1..8, 4]``."""
        sizes = iter(self.sizes)
        parts = [
            f"{spec.name}: {str(spec.dtype).removeprefix('torch.')}[{_shape(next(sizes, ()))}]"
            if isinstance(spec, TensorSpec)
            else f"{spec.name}={spec.text}"
            for spec in self.inputs
        ]
        return ", ".join(parts)

    def to_dict(self) -> dict[str, object]:
        """Returns the spec as JSON values."""
        return {
            "inputs": [
                {"name": spec.name, "dtype": str(spec.dtype), "rank": spec.rank}
                if isinstance(spec, TensorSpec)
                else {"name": spec.name, "kind": spec.kind, "text": spec.text}
                for spec in self.inputs
            ],
            "structure": self.structure,
            "sizes": [
                [[size.lower, size.upper, size.symbol, size.is_batch] for size in sizes]
                for sizes in self.sizes
            ],
        }


def _shape(sizes: Sequence[SizeRange]) -> str:
    return ", ".join(
        str(size.lower) if size.symbol is None else f"{size.symbol}={size.lower}..{size.upper}"
        for size in sizes
    )


class SizesSeen:
    """Collects sizes call by call: ranges, and which dimensions always go together."""

    def __init__(self, declared: Sequence[Mapping[int, DynamicDim]]) -> None:
        self._declared = declared
        self._lower: list[int] = []
        self._upper: list[int] = []
        self._group: list[int] = []

    def add(self, shapes: Sequence[Sequence[int]]) -> None:
        """Takes in the shapes of one call.

        Raises:
            ValueError: A size lies outside its declared range.
        """
        self._check(shapes)
        flat = [size for shape in shapes for size in shape]
        if not self._lower:
            self._lower, self._upper, self._group = list(flat), list(flat), [0] * len(flat)
        self._lower = [min(pair) for pair in zip(self._lower, flat, strict=True)]
        self._upper = [max(pair) for pair in zip(self._upper, flat, strict=True)]
        numbers: dict[tuple[int, int], int] = {}
        self._group = [
            numbers.setdefault(pair, len(numbers)) for pair in zip(self._group, flat, strict=True)
        ]

    def ranges(self, ranks: Sequence[int]) -> tuple[tuple[SizeRange, ...], ...]:
        """Returns a range for each dimension of each tensor."""
        named = self._declared_by_position(ranks)
        by_group = {self._group[position]: dim for position, dim in named.items()}
        found: list[tuple[SizeRange, ...]] = []
        position = 0
        for rank in ranks:
            places = range(position, position + rank)
            found.append(tuple(self._range(place, named, by_group) for place in places))
            position += rank
        return tuple(found)

    def _range(
        self, place: int, named: Mapping[int, DynamicDim], by_group: Mapping[int, DynamicDim]
    ) -> SizeRange:
        lower, upper = self._lower[place], self._upper[place]
        dim = named.get(place)
        if dim is None and lower != upper:
            dim = by_group.get(self._group[place])
        if dim is not None:
            symbol = dim.name if dim.min != dim.max else None
            return SizeRange(dim.min, dim.max, symbol, isinstance(dim, BatchDim))
        symbol = f"size{self._group[place]}" if lower != upper else None
        return SizeRange(lower, upper, symbol)

    def _declared_by_position(self, ranks: Sequence[int]) -> dict[int, DynamicDim]:
        found: dict[int, DynamicDim] = {}
        position = 0
        for rank, dims in zip(ranks, self._declared, strict=True):
            found.update({position + dimension: dim for dimension, dim in dims.items()})
            position += rank
        return found

    def _check(self, shapes: Sequence[Sequence[int]]) -> None:
        for shape, dims in zip(shapes, self._declared, strict=True):
            for dimension, dim in dims.items():
                if not dim.min <= shape[dimension] <= dim.max:
                    raise ValueError(
                        f"dimension {dim.name!r} is declared to lie in [{dim.min}, {dim.max}], "
                        f"got {shape[dimension]}: declare a wider range"
                    )
