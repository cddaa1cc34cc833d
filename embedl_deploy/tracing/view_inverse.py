# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Which operations return views, and how a value written to a view gets back into its base."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import SymInt, Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node
from torch.fx.node import Argument, map_arg

_aten = torch.ops.aten

# These return their input or a view of it when nothing has to move, a new tensor otherwise.
_SOMETIMES: tuple[OpOverloadPacket, ...] = (
    _aten.reshape,
    _aten.reshape_as,
    _aten.contiguous,
    _aten.to,
    _aten.flatten,
    _aten.ravel,
    _aten.type_as,
)
_DROPOUTS: tuple[OpOverload, ...] = (
    _aten.dropout.default,
    _aten.feature_dropout.default,
    _aten.alpha_dropout.default,
)


class NoInverse(Exception):  # noqa: N818  # the caller explains it to the user
    """Raised where a view cannot be written back."""


def viewed(node: Node) -> Node | None:
    """Returns the node whose memory ``node`` shows, None where it has memory of its own."""
    source = node.args[0] if node.args else None
    if node.op != "call_function" or not isinstance(source, Node):
        return None
    if getattr(node.target, "__name__", "") == "getitem":
        return source if viewed(source) is not None else None
    if not isinstance(node.target, OpOverload):
        return None
    if node.target in _DROPOUTS:
        return source if node.args[2] is False else None
    if node.target.overloadpacket in _SOMETIMES:
        return source if _shares_memory(node, source) else None
    returns = node.target._schema.returns
    return source if returns and returns[0].alias_info is not None else None


def _shares_memory(node: Node, source: Node) -> bool:
    def value(read: Node) -> Argument:
        return cast("Argument", read.meta.get("val"))

    args = cast("tuple[object, ...]", map_arg(node.args, value))
    kwargs = cast("dict[str, object]", map_arg(node.kwargs, value))
    before = source.meta.get("val")
    after: object = cast("OpOverload", node.target)(*args, **kwargs)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.untyped_storage()._cdata == after.untyped_storage()._cdata


def written_back(view: Node, index: Argument, base: Node, value: Node) -> Node:
    """Inserts the call that returns ``base`` with ``value`` in the place that ``view`` shows.

    Args:
        view: The call that made the view; gives the position and its literals.
        index: Which element of the view was written, where ``view`` returns several.
        base: What is viewed, as it is before the write.
        value: What the view holds after the write.

    Raises:
        NoInverse: The operation is none that this package can write through.
    """
    target = cast("OpOverload", view.target)
    if index is not None:
        return _into_part(view, cast("int", index), base, value)
    inverse = _INVERSES.get(target.overloadpacket)
    if inverse is None:
        raise NoInverse
    return inverse(view, base, value)


def _call(base: Node, target: OpOverload, *args: Argument) -> Node:
    return base.graph.create_node("call_function", target, args, name=target._opname)


def _scatter(target: OpOverload) -> Callable[[Node, Node, Node], Node]:
    def inverse(view: Node, base: Node, value: Node) -> Node:
        scattered = _call(base, target, base, value, *view.args[1:])
        scattered.kwargs = dict(view.kwargs)
        return scattered

    return inverse


def _same(view: Node, base: Node, value: Node) -> Node:
    del view, base
    return value


def _transposed(view: Node, base: Node, value: Node) -> Node:
    return _call(base, cast("OpOverload", view.target), value, *view.args[1:])


def _permuted(view: Node, base: Node, value: Node) -> Node:
    order = cast("Sequence[int]", view.args[1])
    rank = len(order)
    inverse = [0] * rank
    for position, source in enumerate(order):
        inverse[source % rank] = position
    return _call(base, _aten.permute.default, value, inverse)


def _reshaped(view: Node, base: Node, value: Node) -> Node:
    """Gives ``value`` the shape of ``base``; sizes that vary are read from ``base`` itself."""
    del view
    before: Tensor = base.meta["val"]
    sizes: list[Argument] = []
    for dimension, size in enumerate(cast("Sequence[object]", before.shape)):
        if isinstance(size, int):
            sizes.append(size)
            continue
        read = _call(base, _aten.sym_size.int, base, dimension)
        read.meta = {**base.meta, "val": cast("SymInt", size)}
        sizes.append(read)
    return _call(base, _aten.reshape.default, value, sizes)


def _narrowed(view: Node, base: Node, value: Node) -> Node:
    dimension, start, length = (cast("int", item) for item in view.args[1:4])
    return _call(base, _aten.slice_scatter.default, base, value, dimension, start, start + length)


def _into_part(view: Node, index: int, base: Node, value: Node) -> Node:
    """Writes one element of ``split``, ``chunk`` or ``unbind`` back."""
    target = cast("OpOverload", view.target)
    if target.overloadpacket is _aten.unbind:
        dimension = view.args[1] if len(view.args) > 1 else view.kwargs.get("dim", 0)
        return _call(base, _aten.select_scatter.default, base, value, dimension, index)
    if target.overloadpacket not in (_aten.split, _aten.split_with_sizes, _aten.chunk):
        raise NoInverse
    dimension = cast("int", view.args[2] if len(view.args) > 2 else view.kwargs.get("dim", 0))
    parts = cast("Sequence[Tensor]", view.meta["val"])
    given: list[object] = [part.shape[dimension] for part in parts[: index + 1]]
    sizes = [size for size in given if isinstance(size, int)]
    if len(sizes) != len(given):
        raise NoInverse
    start, end = sum(sizes[:-1]), sum(sizes)
    return _call(base, _aten.slice_scatter.default, base, value, dimension, start, end)


_INVERSES: dict[OpOverloadPacket, Callable[[Node, Node, Node], Node]] = {
    _aten.slice: _scatter(_aten.slice_scatter.default),
    _aten.select: _scatter(_aten.select_scatter.default),
    _aten.diagonal: _scatter(_aten.diagonal_scatter.default),
    _aten.narrow: _narrowed,
    _aten.transpose: _transposed,
    _aten.t: _transposed,
    _aten.numpy_T: _transposed,
    _aten.swapaxes: _transposed,
    _aten.permute: _permuted,
    _aten.alias: _same,
    _aten.detach: _same,
    _aten.contiguous: _same,
    _aten.to: _same,
    _aten.type_as: _same,
    _aten.lift_fresh: _same,
    _aten.dropout: _same,
    _aten.feature_dropout: _same,
    _aten.alpha_dropout: _same,
    _aten.view: _reshaped,
    _aten._unsafe_view: _reshaped,
    _aten.view_as: _reshaped,
    _aten.reshape: _reshaped,
    _aten.reshape_as: _reshaped,
    _aten.flatten: _reshaped,
    _aten.unflatten: _reshaped,
    _aten.ravel: _reshaped,
    _aten.unsqueeze: _reshaped,
    _aten.squeeze: _reshaped,
}
