# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Values for the arguments of ATen ops that a tree leaves open."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from random import Random
from typing import cast

import torch
from torch._ops import OpOverload
from torch.fx.node import Argument

_PLAIN: tuple[Argument, ...] = (0, 1, 2, 3, -1, 0.5, 1.0, 2.0, 1e-5, True, False, None)


def argument_value(name: str, kind: str, shape: tuple[int, ...], random: Random) -> Argument:
    """Returns a value for an argument of an op on a tensor of ``shape``.

    Args:
        name: The argument's name in the op's schema.
        kind: The argument's type in the op's schema.
        shape: Shape of the op's first tensor.
        random: Where choices come from.
    """
    rank = len(shape)
    by_name: dict[str, tuple[Argument, ...]] = {
        "size": _sizes(shape),
        "shape": _sizes(shape),
        "sizes": _sizes(shape),
        "dims": (list(range(rank)), list(range(rank - 1, -1, -1)), [rank - 1]),
        "pad": ([0, 0], [0, 1]),
        "shifts": ([0], [1]),
        "end_dim": (1, -1),
    }
    by_kind: dict[str, tuple[Argument, ...]] = {
        "ScalarType": (torch.float32, torch.float64),
        "List[int]": ([1], [0], [-1], [rank - 1]),
        "int": (0, 1, 2, -1),
        "bool": (True, False),
    }
    if name in by_name:
        return random.choice(by_name[name])
    likely = next((values for part, values in by_kind.items() if part in kind), None)
    return random.choice(likely or (0, 1, 0.5, 2.0))


def as_tracing_spells(target: object, args: Sequence[Argument]) -> list[Argument]:
    """Returns the arguments of a call with a list where the op takes one, as in traced graphs."""
    if not isinstance(target, OpOverload):
        return list(args)
    kinds = [str(parameter.type) for parameter in target._schema.arguments]
    return [
        [value] if isinstance(value, int) and "List[int]" in kind else value
        for value, kind in zip_longest(args, kinds[: len(args)], fillvalue="")
    ]


def fitting_literals(where: Callable[[object], bool] | None) -> list[Argument]:
    """Returns values that pass ``where``: plain ones and the numbers that it holds itself."""
    if where is None:
        return [1, 2.0]
    return [value for value in (*_numbers_in(where), *_PLAIN) if _passes(where, value)]


def _numbers_in(where: Callable[[object], bool]) -> Iterator[Argument]:
    cells = cast("tuple[object, ...]", getattr(where, "__closure__", None) or ())
    code = getattr(where, "__code__", None)
    held = [getattr(cell, "cell_contents", None) for cell in cells]
    held += list(cast("tuple[object, ...]", getattr(code, "co_consts", ())))
    held += list(cast("tuple[object, ...]", getattr(where, "__defaults__", None) or ()))
    for value in held:
        if isinstance(value, (bool, int, float)):
            yield value


def _passes(where: Callable[[object], bool], value: Argument) -> bool:
    try:
        return where(value)
    except Exception:  # noqa: BLE001  # a condition may fail in any way on another type
        return False


def _sizes(shape: tuple[int, ...]) -> tuple[Argument, ...]:
    count = 1
    for size in shape:
        count *= size
    return (
        list(shape),
        [shape[0], -1],
        [-1, shape[-1]],
        [count],
        [*shape[:-1], shape[-1], 1],
    )
