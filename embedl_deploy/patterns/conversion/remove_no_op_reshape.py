"""Removes reshapes, slices, rolls and paddings that leave a tensor as it is."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import bound_arguments, shape_of
from embedl_deploy.patterns.shapes import same_shape
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase

_ATEN = torch.ops.aten


def _keeps_shape(node: Node) -> bool:
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    return before is not None and after is not None and same_shape(before, after)


def _keeps_order(node: Node) -> bool:
    order = bound_arguments(node)["dims"]
    if not isinstance(order, (list, tuple)):
        return False
    rank = len(order)
    return [cast("int", dim) % rank for dim in order] == list(range(rank))


def _swaps_nothing(node: Node) -> bool:
    shape, bound = shape_of(node), bound_arguments(node)
    rank = len(shape) if shape else 1
    return cast("int", bound["dim0"]) % rank == cast("int", bound["dim1"]) % rank


def _has_only_zeros(name: str) -> Callable[[Node], bool]:
    def check(node: Node) -> bool:
        amounts = bound_arguments(node)[name]
        return isinstance(amounts, (list, tuple)) and all(
            not isinstance(amount, Node) and amount == 0 for amount in amounts
        )

    return check


def _steps_by_one(node: Node) -> bool:
    return _keeps_shape(node) and bound_arguments(node)["step"] in (1, None)


_NO_OPS: Mapping[object, Callable[[Node], bool]] = {
    _ATEN.view.default: _keeps_shape,
    _ATEN.reshape.default: _keeps_shape,
    _ATEN._unsafe_view.default: _keeps_shape,
    _ATEN.unflatten.int: _keeps_shape,
    _ATEN.flatten.using_ints: _keeps_shape,
    _ATEN.expand.default: _keeps_shape,
    _ATEN.squeeze.dim: _keeps_shape,
    _ATEN.slice.Tensor: _steps_by_one,
    _ATEN.permute.default: _keeps_order,
    _ATEN.transpose.int: _swaps_nothing,
    _ATEN.roll.default: _has_only_zeros("shifts"),
    _ATEN.pad.default: _has_only_zeros("pad"),
    _ATEN.constant_pad_nd.default: _has_only_zeros("pad"),
}


class RemoveNoOpReshape(Pattern):
    """Removes a view, expand, slice, permute, roll or padding that changes nothing. Exact."""

    phase = Phase.CONVERSION
    tree = Chain(
        reshape=tuple(Op(target, where=check) for target, check in _NO_OPS.items())  # pyright: ignore[reportArgumentType]  # keys are ATen overloads
    )

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]
