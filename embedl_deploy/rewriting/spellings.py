# pyright: reportPrivateUsage=false
# torch keeps schemas private; there is no other door.
"""What a tree should name where tracing spells an operation in another way than the tree does."""

import operator
from typing import cast

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

from embedl_deploy.graph.nodes import Target
from embedl_deploy.rewriting.describe import describe_target
from embedl_deploy.rewriting.layer_ops import in_place_of_layer
from embedl_deploy.rewriting.targets import lifted_class
from embedl_deploy.tracing.clean import VIEWS

_ATEN = torch.ops.aten


def traced_spelling(target: Target, found: Node) -> str | None:
    """Returns what to write in a tree in place of ``target``, None where it is spelled well.

    Args:
        target: What the tree names.
        found: What stands in its place: what became of a layer is told from where it was made.
    """
    if isinstance(target, type):
        return _of_layer(target, found) or in_place_of_layer(target)
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        return _of_op(cast("OpOverload | OpOverloadPacket", target), found)
    if getattr(operator, str(getattr(target, "__name__", "")), None) is target:
        return _of_operator(target)
    return None


def _of_layer(target: type, found: Node) -> str | None:
    """Tells where a layer is no layer in the graph: its ops were made inside one of its class."""
    stack = found.meta.get("nn_module_stack")
    if found.op != "call_function" or not isinstance(stack, dict) or not stack:
        return None
    _, kind = list(cast("dict[str, tuple[str, object]]", stack).values())[-1]
    name = kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]
    if name != target.__name__ or not issubclass(target, nn.Module):
        return None
    ran = describe_target(cast("Target", found.target))
    return f"tracing makes no layer of {name}: write torch.ops.{ran}"


def _of_op(target: OpOverload | OpOverloadPacket, found: Node) -> str | None:
    name = describe_target(target)
    layer = lifted_class(target)
    if layer is not None:
        return f"tracing makes the layer {layer} of {name}: write {layer}"
    if target in VIEWS or any(overload.overloadpacket is target for overload in VIEWS):
        return f"tracing spells {name} as aten.reshape: write torch.ops.aten.reshape.default"
    if _is_in_place(target):
        plain = str(_packet(target).__name__).rstrip("_")
        layer = lifted_class(getattr(_ATEN, plain, target))
        return (
            f"traced graphs hold no op that writes in place, such as {name}: write "
            f"{layer or f'torch.ops.aten.{plain}'}"
        )
    runs = found.target
    if isinstance(runs, OpOverload) and isinstance(target, OpOverload):
        names = str(runs.overloadpacket.__name__), str(target.overloadpacket.__name__)
        if names[0] in (names[1], names[1].lstrip("_")):
            return f"the graph holds another overload of it: write torch.ops.{runs}"
    return None


def _of_operator(target: Target) -> str | None:
    name = str(getattr(target, "__name__", ""))
    name = "div" if name == "truediv" else name
    if name == "getitem" or not hasattr(_ATEN, name):
        return None
    return f"operators of tensors are ATen ops in the graph: write torch.ops.aten.{name}"


def _packet(target: OpOverload | OpOverloadPacket) -> OpOverloadPacket:
    return target.overloadpacket if isinstance(target, OpOverload) else target


def _is_in_place(target: OpOverload | OpOverloadPacket) -> bool:
    packet = _packet(target)
    names = [target._overloadname] if isinstance(target, OpOverload) else list(packet.overloads())
    writes = [cast("OpOverload", getattr(packet, name))._schema.is_mutable for name in names]
    return bool(writes) and all(writes)
