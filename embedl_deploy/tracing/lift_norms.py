"""Norms that models spell with single operations."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import bound_arguments, is_call
from embedl_deploy.tracing.lift_call import Call, Lifting, Unliftable

_aten = torch.ops.aten
_CASTS = (_aten.to.dtype, _aten.to.dtype_layout, _aten._to_copy.default, _aten.type_as.default)


def rms_norm_by_hand(call: Call) -> Lifting:
    """``weight * (x * rsqrt(mean(x², -1) + eps))``, as Llama and T5 write it.

    Casts between must change nothing: in half precision such models round where the module does
    not. Outputs move by rounding.

    Source: Zhang and Sennrich 2019, equation 4, https://arxiv.org/abs/1910.07467
    """
    for first, second in (("self", "other"), ("other", "self")):
        weight, normed = call.bound.get(first), call.bound.get(second)
        if not isinstance(weight, Node) or not isinstance(normed, Node):
            continue
        if weight.op != "get_attr" or normed.op == "get_attr":
            continue
        slots = {"weight": call.parameter(first)}
        x, eps = _normed(_uncast(normed))
        if _is_gain(call.tensor(weight), x.meta.get("val")):
            options = {"normalized_shape": call.shape(weight), "eps": eps}
            return Lifting(nn.RMSNorm, options, (x,), slots)
    raise Unliftable


def _is_gain(weight: Tensor | None, x: object) -> bool:
    """Tells whether ``weight`` holds one number per element of a row of ``x``, of its dtype."""
    if weight is None or not isinstance(x, Tensor) or weight.dim() != 1:
        return False
    width = cast("object", x.shape[-1])
    return isinstance(width, int) and width == weight.shape[0] and weight.dtype == x.dtype


def _normed(node: Node) -> tuple[Node, float]:
    """Returns x and eps where ``node`` is x divided by its root mean square."""
    if is_call(node, _aten.div.Tensor):
        pairs = [(node.args[0], node.args[1], _aten.sqrt.default)]
    elif is_call(node, _aten.mul.Tensor):
        pairs = [(node.args[i], node.args[1 - i], _aten.rsqrt.default) for i in (0, 1)]
    else:
        raise Unliftable
    for x, root, target in pairs:
        if isinstance(x, Node) and isinstance(root, Node) and is_call(root, target):
            source = _uncast(x)
            eps = _eps(cast("Node", root.args[0]), source)
            if eps is not None:
                return source, eps
    raise Unliftable


def _eps(node: Node, x: Node) -> float | None:
    """Returns eps where ``node`` is mean(x², -1) + eps."""
    if not is_call(node, _aten.add.Tensor) or bound_arguments(node)["alpha"] != 1:
        return None
    mean, eps = node.args[0], node.args[1]
    if (
        not isinstance(mean, Node)
        or not isinstance(eps, float)
        or not is_call(mean, _aten.mean.dim)
    ):
        return None
    bound = bound_arguments(mean)
    square = bound["self"]
    is_rows = bound["dim"] in ([-1], (-1,)) and bound["keepdim"] is True
    if not is_rows or bound["dtype"] is not None or not isinstance(square, Node):
        return None
    return eps if _is_square(square, x) else None


def _is_square(node: Node, x: Node) -> bool:
    if is_call(node, _aten.pow.Tensor_Scalar):
        return node.args[1:] == (2,) and _is(node.args[0], x)
    if is_call(node, _aten.mul.Tensor):
        return _is(node.args[0], x) and _is(node.args[1], x)
    return is_call(node, _aten.square.default) and _is(node.args[0], x)


def _is(value: Argument, x: Node) -> bool:
    return isinstance(value, Node) and _uncast(value) is x


def _uncast(node: Node) -> Node:
    """Returns what ``node`` casts without changing anything."""
    while any(is_call(node, target) for target in _CASTS):
        source = cast("Node", node.args[0])
        before, after = source.meta.get("val"), node.meta.get("val")
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            break
        if (before.dtype, before.device) != (after.dtype, after.device):
            break
        node = source
    return node
