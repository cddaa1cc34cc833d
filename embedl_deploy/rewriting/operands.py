# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""The operands of a call: which may be swapped, which must have their defaults."""

from collections.abc import Collection, Iterator, Mapping
from itertools import permutations
from typing import cast

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, input_nodes

_ATEN = torch.ops.aten

COMMUTATIVE: frozenset[object] = frozenset(
    {
        _ATEN.add.Tensor,
        _ATEN.mul.Tensor,
        _ATEN.maximum.default,
        _ATEN.minimum.default,
        _ATEN.logical_and.default,
        _ATEN.logical_or.default,
        _ATEN.bitwise_and.Tensor,
        _ATEN.bitwise_or.Tensor,
        _ATEN.logical_xor.default,
        _ATEN.bitwise_xor.Tensor,
        _ATEN.eq.Tensor,
        _ATEN.ne.Tensor,
        _ATEN.max.other,
        _ATEN.min.other,
        _ATEN.fmax.default,
        _ATEN.fmin.default,
        _ATEN.logaddexp.default,
        _ATEN.logaddexp2.default,
        _ATEN.hypot.default,
        _ATEN.gcd.default,
        _ATEN.lcm.default,
    }
)
"""Calls whose first two operands may be swapped, where none of them is scaled."""

_SCALES: Mapping[object, Mapping[str, object]] = {
    _ATEN.add.Tensor: {"alpha": 1},
    _ATEN.sub.Tensor: {"alpha": 1},
    _ATEN.addmm.default: {"alpha": 1, "beta": 1},
}
"""Arguments that change what an op means and that a bare target must not overlook."""


def scales_are_plain(node: Node, allowed: Mapping[str, object] | None = None) -> bool:
    """Tells whether arguments such as ``alpha`` of an add have the value that changes nothing."""
    # All of them can be given by keyword only.
    plain = _SCALES.get(node.target) if node.kwargs else None
    if plain is None:
        return True
    bound = bound_arguments(node)
    return all(bound[name] == value or name in (allowed or {}) for name, value in plain.items())


def commutes(node: Node) -> bool:
    """Tells whether the first two operands of ``node`` may be swapped."""
    return node.target in COMMUTATIVE and scales_are_plain(node)


def open_inputs(node: Node) -> tuple[Node, ...]:
    """Returns the nodes that the link before ``node`` in a chain may be."""
    arguments = node.args or tuple(node.kwargs.values())
    if len(arguments) == 1 and isinstance(arguments[0], Node):
        return (arguments[0],)
    if arguments and isinstance(arguments[0], (list, tuple)):
        return tuple(item for item in arguments[0] if isinstance(item, Node))
    operands = tuple(item for item in arguments if isinstance(item, Node))
    return operands if len(operands) == 1 or commutes(node) else operands[:1]


def operand_orders(node: Node) -> Iterator[tuple[Argument, ...]]:
    """Yields the arguments by position, defaults filled in, then swapped if the call commutes."""
    arguments = node.args
    if isinstance(node.target, OpOverload):
        arguments = tuple(bound_arguments(node).values())
    yield arguments
    if len(arguments) >= 2 and commutes(node):
        first, second, *rest = arguments
        yield (second, first, *rest)


def rest_is_default(node: Node, listed: int, literals: Mapping[str, object]) -> bool:
    """Tells whether all arguments after the first ``listed`` have their defaults, or are named."""
    if not isinstance(node.target, OpOverload):
        rest = {*map(str, range(listed, len(node.args))), *node.kwargs}
        return rest <= literals.keys()
    bound = bound_arguments(node)
    return all(
        parameter.name in literals
        or (parameter.has_default_value() and bound[parameter.name] == parameter.default_value)
        for parameter in node.target._schema.arguments[listed:]
    )


def joined_operands(node: Node) -> tuple[Node, ...]:
    """Returns the nodes that a call joins, in order: its arguments and the items of its lists."""
    arguments = tuple(bound_arguments(node).values()) if node.kwargs else node.args
    return tuple(input_nodes(arguments))


def not_joined(node: Node, listed: int, literals: Collection[str]) -> Iterator[str]:
    """Yields the names of arguments that are no nodes and do not have their defaults.

    Args:
        node: A call that joins values.
        listed: How many arguments a tree lists, whatever they are.
        literals: Arguments that a tree names.
    """
    if not node.kwargs and all(isinstance(argument, Node) for argument in node.args):
        return
    defaults = _defaults(node)
    for position, (name, value) in enumerate(bound_arguments(node).items()):
        if isinstance(value, Node) or position < listed or name in literals:
            continue
        if isinstance(value, (list, tuple)) and value:
            is_joined = all(isinstance(item, Node) for item in value)
            if is_joined or (name in defaults and defaults[name] == value):
                continue
        elif name in defaults and defaults[name] == value:
            continue
        yield name


def _defaults(node: Node) -> dict[str, Argument]:
    if not isinstance(node.target, OpOverload):
        return {}
    return {
        parameter.name: parameter.default_value
        for parameter in node.target._schema.arguments
        if parameter.has_default_value()
    }


def joining_orders(node: Node, joined: int, branches: int) -> Iterator[tuple[int, ...]]:
    """Yields which of the ``joined`` operands the branches of a fork are, by position.

    Those of a call that commutes in any order; of any other call as they stand, the last ones.
    """
    if joined == 2 and commutes(node):
        yield from permutations(range(2), branches)
    elif joined >= branches:
        yield tuple(range(joined - branches, joined))


def same_literal(found: Argument, wanted: object) -> bool:
    """Tells whether a literal is the one that a tree names: 2 is 2.0, -1 is [-1], 1 is not True."""
    if isinstance(found, (list, tuple)) != isinstance(wanted, (list, tuple)):
        alone, listed = (wanted, found) if isinstance(found, (list, tuple)) else (found, wanted)
        is_integer = isinstance(alone, int) and not isinstance(alone, bool)
        return is_integer and list(cast("list[object]", listed)) == [alone]
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted
