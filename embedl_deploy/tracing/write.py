# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""What an in-place operation writes, and the operation that returns the same value instead."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node
from torch.fx.node import Argument, map_arg

from embedl_deploy.errors import TracingError
from embedl_deploy.graph.nodes import bound_arguments, source_line
from embedl_deploy.graph.values import infer_value

_aten = torch.ops.aten


def is_write(node: Node) -> bool:
    """Tells whether ``node`` changes a tensor that it is given."""
    return (
        node.op == "call_function"
        and isinstance(node.target, OpOverload)
        and node.target._schema.is_mutable
    )


def written(node: Node) -> Node:
    """Returns the argument that ``node`` writes to."""
    schema = cast("OpOverload", node.target)._schema
    found: list[object] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        by_position = position < len(node.args) and not argument.kwarg_only
        found.append(node.args[position] if by_position else node.kwargs.get(argument.name))
    if len(found) != 1 or not isinstance(found[0], Node):
        raise _no_functional_form(node)
    return found[0]


def functional_value(node: Node, now: Callable[[Node], Node]) -> Node:
    """Inserts the call that returns what ``node`` writes; ``now`` gives each input's value."""
    if node.target is _aten.fill_diagonal_.default:
        return _filled_diagonal(node, now)
    target = functional_target(node)
    args = map_arg(node.args, now)
    kwargs = map_arg(node.kwargs, now)
    before = written(node)
    if target is _aten.copy.default and _same_kind(before, args[1]):
        return cast("Node", args[1])
    value = node.graph.create_node("call_function", target, args, kwargs, target._opname)
    value.meta = dict(node.meta)
    if _may_promote(node):
        value = _as_type_of(value, before)
    return value


def _filled_diagonal(node: Node, now: Callable[[Node], Node]) -> Node:
    """Inserts the matrix with its diagonal filled; only ``wrap=False`` on matrices is known."""
    value, graph = written(node).meta.get("val"), node.graph
    bound = bound_arguments(node)
    if not isinstance(value, Tensor) or value.dim() != 2 or bound["wrap"] is not False:
        raise _no_functional_form(node)
    before = now(written(node))
    diagonal = graph.call_function(_aten.diagonal.default, (before,))
    diagonal.meta = {**node.meta, "val": value.diagonal()}
    filled = graph.call_function(_aten.full_like.default, (diagonal, bound["fill_value"]))
    filled.meta = dict(diagonal.meta)
    result = graph.call_function(_aten.diagonal_scatter.default, (before, filled))
    result.meta = dict(node.meta)
    return result


def functional_target(node: Node) -> OpOverload:
    """Returns the overload that computes what ``node`` writes.

    Raises:
        TracingError: The operation has none.
    """
    target = cast("OpOverload", node.target)
    name = target._schema.name.split("::")[1]
    packet: object = getattr(_aten, name.removesuffix("_"), None)
    if name.endswith("_") and isinstance(packet, OpOverloadPacket):
        # floor_divide_.Tensor has its like under another name: floor_divide.default.
        known = cast("OpOverloadPacket", packet)
        for overload in (target._overloadname, *known.overloads()):
            found: object = getattr(cast("object", packet), overload, None)
            if isinstance(found, OpOverload) and _reads_the_same(cast("OpOverload", found), target):
                return cast("OpOverload", found)
    raise _no_functional_form(node)


def _reads_the_same(functional: OpOverload, writing: OpOverload) -> bool:
    first, second = functional._schema, writing._schema
    if first.is_mutable or len(first.arguments) != len(second.arguments):
        return False
    pairs = zip(first.arguments, second.arguments, strict=True)
    return all(str(a.type) == str(b.type) for a, b in pairs)


def _no_functional_form(node: Node) -> TracingError:
    return TracingError(
        f"{node.target} at {source_line(node)} writes in place and has no form that returns a "
        "new tensor: replace it in the model"
    )


def _same_kind(before: Node, source: Argument) -> bool:
    """Tells whether copying ``source`` over ``before`` gives just ``source``."""
    old = before.meta.get("val")
    new = source.meta.get("val") if isinstance(source, Node) else None
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return False
    same_shape = [str(size) for size in old.shape] == [str(size) for size in new.shape]
    return same_shape and old.dtype == new.dtype and old.device == new.device


def _may_promote(node: Node) -> bool:
    """Tells whether the functional form may return another dtype than the tensor written."""
    value = written(node).meta.get("val")
    if not isinstance(value, Tensor):
        return False
    others = [read.meta.get("val") for read in node.all_input_nodes]
    if any(isinstance(other, Tensor) and other.dtype != value.dtype for other in others):
        return True
    return not value.dtype.is_floating_point


def _as_type_of(value: Node, before: Node) -> Node:
    dtype: torch.dtype = before.meta["val"].dtype
    found = infer_value(value)
    if isinstance(found, Tensor) and found.dtype == dtype:
        return value
    cast_node = value.graph.call_function(_aten.to.dtype, (value, dtype))
    cast_node.meta = dict(value.meta)
    value.meta["val"] = found
    return cast_node
