"""What a node may run, and what to write in place of what none runs."""

from types import BuiltinFunctionType, MethodDescriptorType
from typing import cast

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import Target
from embedl_deploy.tracing.lift_table import LIFT_TABLE

_PLAIN_NAMES = {
    "addmm": "linear",
    "convolution": "conv",
    "native_layer_norm": "layer_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
}
"""Ops of which tracing makes the layer of another op, by the name of that."""


def checked_target(target: object) -> Target:
    """Returns ``target`` if a node can run it.

    Raises:
        PatternError: It is a tuple, a tree, a module object or anything else that no node runs.
    """
    if isinstance(target, nn.Module):
        raise PatternError(
            f"a tree names module classes, got the module {target!r}: write {type(target).__name__}"
        )
    if isinstance(target, tuple):
        raise PatternError(
            "Op takes one target, got a tuple: write OneOf(Op(...), Op(...)), or the plain tuple "
            "as a link of a Chain"
        )
    if not callable(target):
        raise PatternError(
            "a node runs a module class, an ATen op or a function, got "
            f"{target!r} of type {type(target).__name__}"
        )
    return cast("Target", target)


def checked_root(rule: str, target: object) -> Target:
    """Returns ``target`` if a node of a traced graph can run it.

    Raises:
        PatternError: It is a function of torch, or nothing that a node runs.
    """
    checked = checked_target(target)
    better = better_spelling(checked)
    if better is not None:
        raise PatternError(
            f"roots of {rule} names {getattr(target, '__name__', target)}, which no node runs: "
            f"traced graphs hold ATen ops and layers of torch.nn. Write {better}"
        )
    return checked


def checked_name(tree: str, name: object) -> str:
    """Returns the name under which a tree captures something.

    Raises:
        PatternError: It is no string.
    """
    if isinstance(name, str):
        return name
    raise PatternError(
        f"the first argument of {tree} is the name to capture under, got {name!r} of type "
        f"{type(name).__name__}: write {tree}('name', …)"
    )


def require_condition(tree: str, where: object) -> None:
    """Asserts that ``where`` is a condition that can be asked.

    Raises:
        PatternError: It is not callable.
    """
    if where is None or (callable(where) and not isinstance(where, type)):
        return
    name = f": to capture it, write Named({where!r}, {tree}())" if isinstance(where, str) else ""
    raise PatternError(
        f"where= of {tree} is a condition, a function of what stands there that says yes or no, "
        f"got {where!r} of type {type(where).__name__}{name}"
    )


def better_spelling(target: Target) -> str | None:
    """Returns what a tree should say in place of a function of torch, None for other targets.

    Traced graphs hold ATen ops and layers of ``torch.nn``: no node runs ``torch.relu``.
    """
    if not _is_torch_function(target):
        return None
    op = aten_packet(target)
    if op is None:
        return "what graph_text() shows for it"
    return lifted_class(op) or f"torch.ops.aten.{op.__name__}"


def aten_packet(target: Target) -> "OpOverloadPacket[..., object] | None":
    """Returns the ATen op that a function of torch runs, None for other targets."""
    if not _is_torch_function(target):
        return None
    name = str(getattr(target, "__name__", "")).rstrip("_")
    op = cast("object", getattr(torch.ops.aten, name, None))
    is_packet = isinstance(op, OpOverloadPacket)
    return cast("OpOverloadPacket[..., object]", op) if is_packet else None


def lifted_class(target: Target) -> str | None:
    """Returns the layer that tracing makes of an ATen op, None where the op stays as it is."""
    packet = target.overloadpacket if isinstance(target, OpOverload) else target
    if not isinstance(packet, OpOverloadPacket):
        return None
    if not any(overload.overloadpacket is packet for overload in LIFT_TABLE):
        return None
    name = _PLAIN_NAMES.get(str(packet.__name__), str(packet.__name__)).replace("_", "")
    layers = {layer.lower(): layer for layer in dir(nn) if isinstance(getattr(nn, layer), type)}
    layer = layers.get(name, layers.get(f"{name}2d"))
    return None if layer is None else f"nn.{layer}"


def _is_torch_function(target: Target) -> bool:
    if isinstance(target, (type, OpOverload, OpOverloadPacket)):
        return False
    if isinstance(target, MethodDescriptorType):
        return target.__objclass__.__module__.startswith("torch")
    if str(getattr(target, "__name__", "")).startswith("sym_"):
        return False
    if isinstance(target, BuiltinFunctionType) and target.__module__ == "torch._C._nn":
        return True
    return target.__module__ in ("torch", "torch.functional", "torch.nn.functional")
