"""From the ``qdq_points`` of a pattern to the operands in the graph that they name."""

import re
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import input_nodes, module_of, value_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.kinds import CONVOLUTIONS, LINEARS
from embedl_deploy.rewriting import PatternMatch

WEIGHT = "weight"
"""The slot that stands for a module's weight."""

_POINT = re.compile(r"(?P<name>\w+)(?:\[(?P<index>\d+)\]|\.(?P<slot>\w+))?")


class Point(NamedTuple):
    """One operand that a quantizer belongs to."""

    node: Node
    """The node that reads the operand."""

    value: Node | None = None
    """The tensor it reads, for an operand that is a node of the graph."""

    slot: str | None = None
    """``"weight"``, or the attribute of the node's module that takes a stub."""

    position: int | None = None
    """Which input of the node it is, for an operand that is a node of the graph."""

    def replace(self, new: Node) -> None:
        """Lets the node read ``new`` at this position, and there alone."""
        positions = count()

        def at(read: Node) -> Node:
            return new if next(positions) == self.position else read

        self.node.args = map_arg(self.node.args, at)


def points_of(match: PatternMatch) -> tuple[Point, ...]:
    """Returns the operands that the pattern of ``match`` wants quantized.

    A pattern names them by its captures: ``"layer"`` means every floating-point input of the
    node and, if it runs a weighted layer, the weight; ``"layer[1]"`` the second input alone;
    ``"layer.weight"`` the weight alone; ``"layer.query_stub"`` an operand inside the module,
    which has an attribute of that name to put the quantizer in.

    Raises:
        PatternError: A point names nothing in the match.
    """
    found: list[Point] = []
    for text in match.pattern.qdq_points:
        parsed = _parsed(text)
        if parsed is None:
            raise PatternError(
                f"{match.pattern.name}: a point is written 'name', 'name[1]', 'name.weight' or "
                f"'name.slot', got {text!r}"
            )
        found += _points_at(match, match[parsed["name"]], parsed)
    return tuple(dict.fromkeys(found))


def is_weighted(module: nn.Module | None) -> bool:
    """Tells whether the weight of ``module`` can be quantized."""
    return isinstance(module, (WeightedFused, *CONVOLUTIONS, *LINEARS))


def is_float_tensor(node: Node) -> bool:
    """Tells whether ``node`` yields one floating-point tensor."""
    value = value_of(node)
    return isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16, torch.half)


@lru_cache(maxsize=256)
def _parsed(text: str) -> re.Match[str] | None:
    return _POINT.fullmatch(text)


def _points_at(match: PatternMatch, node: Node, parsed: re.Match[str]) -> list[Point]:
    if parsed["slot"] is not None:
        return [_slot_point(match, node, parsed["slot"])]
    values = list(input_nodes(node.args))
    if parsed["index"] is not None:
        index = int(parsed["index"])
        if index >= len(values):
            raise PatternError(
                f"{match.pattern.name}: %{node.name} has {len(values)} inputs, "
                f"{parsed[0]!r} names another"
            )
        return [Point(node, values[index], position=index)]
    points = [
        Point(node, value, position=position)
        for position, value in enumerate(values)
        if is_float_tensor(value)
    ]
    if is_weighted(module_of(node)):
        points.append(Point(node, slot=WEIGHT))
    return points


def _slot_point(match: PatternMatch, node: Node, slot: str) -> Point:
    module = module_of(node)
    if module is None or (slot == WEIGHT and not is_weighted(module)):
        raise PatternError(f"{match.pattern.name}: %{node.name} has no {slot!r} to quantize")
    return Point(node, slot=slot)
