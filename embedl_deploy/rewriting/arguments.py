"""What a rule may hand to the engine to build with, and what to write in place of the rest."""

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.rewriting.targets import aten_packet

_MOST_SHOWN = 4


def require_module(rule: str, module: object) -> None:
    """Asserts that what a rule gives to ``call_module`` is a module.

    Raises:
        PatternError: It is a class, a name or anything else.
    """
    if isinstance(module, nn.Module):
        return
    contract = f"{rule} must give call_module a module"
    if isinstance(module, type):
        name = module.__name__
        raise PatternError(f"{contract}, got the class {name} itself: make one, {name}(…)")
    cure = "make one, or take the one that a captured node calls, match.module(name, nn.Linear)"
    if isinstance(module, str):
        cure = f"the one that a captured node calls is match.module({module!r}, nn.Module)"
    raise PatternError(f"{contract}, got {module!r} of type {type(module).__name__}: {cure}")


def require_arguments(
    rule: str, step: str, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> None:
    """Asserts that no argument of a new call is a tensor or a module, which no graph can hold.

    Raises:
        PatternError: One is.
    """
    for argument in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(argument, Node):
            continue
        if isinstance(argument, (Tensor, nn.Module)):
            raise PatternError(f"{rule} gives {step} {_unfit(argument)}")
        if isinstance(argument, dict):
            require_arguments(rule, step, (), cast("dict[str, object]", argument))
        elif isinstance(argument, (list, tuple)):
            require_arguments(rule, step, tuple(cast("Iterable[object]", argument)), {})


def require_target(rule: str, target: object, graph_module: GraphModule) -> None:
    """Asserts that a graph of ATen ops gets an overload where there is one to name.

    Raises:
        PatternError: The target is no function, an op that has several overloads, or a function of
            torch in a graph that ``torch.export`` made.
    """
    if isinstance(target, OpOverload):
        return
    if not callable(target):
        raise PatternError(
            f"{rule} must give call_function a function, got {target!r} of type "
            f"{type(target).__name__}: write torch.ops.aten.relu.default, for one"
        )
    is_packet = isinstance(target, OpOverloadPacket)
    packet = cast("OpOverloadPacket[..., object]", target) if is_packet else None
    if packet is None and has_record(graph_module) and record_of(graph_module).tracer == "export":
        packet = aten_packet(target)
    if packet is None:
        return
    listed = [f"torch.ops.{str(packet).replace('::', '.')}.{name}" for name in packet.overloads()]
    shown = " or ".join(listed[:_MOST_SHOWN])
    what = "an op without its overload" if is_packet else "a function of torch"
    given = _name_of(cast("object", target))
    raise PatternError(
        f"{rule} gives call_function {given}, {what}, and this graph runs overloads, "
        f"which is what patterns and engines look for: write {shown}"
    )


def require_tensor(rule: str, tensor: object, name: object) -> None:
    """Asserts that ``get_attr`` is given a tensor, and a name that it can be registered under.

    Raises:
        PatternError: It is not.
    """
    if not isinstance(tensor, Tensor):
        raise PatternError(
            f"{rule} must give get_attr a tensor, got {tensor!r} of type {type(tensor).__name__}: "
            "the tensor that a captured node reads is match.parameter(name)"
        )
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise PatternError(
            f"{rule} must give get_attr a name like a variable's, got {name!r}: the model's state "
            "dict and its code will show it"
        )


def _unfit(argument: Tensor | nn.Module) -> str:
    if isinstance(argument, nn.Module):
        return (
            f"the module {type(argument).__name__} as an argument, and a call reads nodes and "
            "plain values: call the module with match.call_module, and pass the node"
        )
    return (
        f"a tensor of shape {list(argument.shape)} as an argument, and a call reads nodes and "
        "plain values: pass match.get_attr(tensor, 'name'), with replaces=(key,) if it takes the "
        "place of a weight of the model"
    )


def _name_of(target: object) -> str:
    if isinstance(target, OpOverloadPacket):
        return f"torch.ops.{str(cast('object', target)).replace('::', '.')}"
    return f"torch.{getattr(target, '__name__', target)}"
