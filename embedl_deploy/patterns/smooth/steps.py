"""Operations between a tensor and its readers that carry its channels on, each as it was."""

from collections.abc import Sequence

from torch import SymInt, nn
from torch._ops import OpOverload
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of, shape_of
from embedl_deploy.graph.values import same_size

_COPIES = frozenset({"alias", "clone", "contiguous", "detach"})
_RESHAPES = frozenset(
    {"_unsafe_view", "flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view"}
)
_SWAPS = frozenset({"transpose", "permute"})

Shape = Sequence[int | SymInt]


def carries_channels(node: Node) -> bool:
    """Tells whether ``node`` gives the values of its input in another order, or in the same."""
    name = _name(node)
    return name in _COPIES | _RESHAPES | _SWAPS or _passes(node)


def axis_after(node: Node, axis: int) -> int | None:
    """Returns where ``node`` leaves the channels that lie along ``axis`` of its input.

    None if it mixes them with another axis, or does more than move values.
    """
    if _passes(node) or _name(node) in _COPIES:
        return axis
    if not carries_channels(node):
        return None
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if not before or not after:
        return None
    if _name(node) in _RESHAPES:
        return _axis_reshaped(before, after, axis)
    return _axis_swapped(node, len(before), axis)


def _axis_reshaped(before: Shape, after: Shape, axis: int) -> int | None:
    if len(after) > axis and all(map(same_size, before[: axis + 1], after)):
        return axis
    # Values in order: one is in the channel of its place modulo the number of channels.
    is_last = all(same_size(size, 1) for size in before[axis + 1 :])
    return len(after) - 1 if is_last and same_size(after[-1], before[axis]) else None


def _axis_swapped(node: Node, rank: int, axis: int) -> int | None:
    order = list(range(rank))
    if _name(node) == "transpose":
        first, second = node.args[1:3]
        if not isinstance(first, int) or not isinstance(second, int):
            return None
        order[first], order[second] = order[second], order[first]
    else:
        given = node.args[1]
        if not isinstance(given, (list, tuple)):
            return None
        order = [one % rank for one in given if isinstance(one, int)]
    return order.index(axis)


def _passes(node: Node) -> bool:
    return isinstance(module_of(node), (nn.Identity, nn.Dropout))


def _name(node: Node) -> str:
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, OpOverload) else ""
