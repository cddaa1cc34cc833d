# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Questions about one node of an fx graph; none of them changes anything."""

import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import SymInt, Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

Target = type[nn.Module] | OpOverload | OpOverloadPacket | Callable[..., object]
"""What a node may run: a module class, an ATen overload, all overloads of an op, a function."""

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_TORCH_ROOT = f"{Path(torch.__file__).parent}{os.sep}"


def graph_module_of(node: Node) -> GraphModule:
    """Returns the module that owns the graph of ``node``."""
    owner = node.graph.owning_module
    if owner is None:
        raise ValueError(f"node %{node.name} belongs to a graph that no GraphModule owns")
    return owner


def module_at(graph_module: nn.Module, path: str) -> nn.Module | None:
    """Returns the submodule at ``path``, or None where there is none."""
    module: nn.Module | None = graph_module
    try:
        for name in path.split("."):
            module = module._modules[name]  # pyright: ignore[reportOptionalMemberAccess]  # caught
    except (KeyError, AttributeError):
        return None
    return module


def module_of(node: Node) -> nn.Module | None:
    """Returns the module that a ``call_module`` node runs, None for any other node."""
    if node.op != "call_module":
        return None
    owner = node.graph.owning_module
    return module_at(graph_module_of(node) if owner is None else owner, node.target)  # pyright: ignore[reportArgumentType]  # the target of such a call is a path


def parts_of(module: nn.Module) -> tuple[nn.Module, ...]:
    """Returns the modules that a fused module holds by reference, () for any other module."""
    # Asking the class first is fast: a module's own attribute lookup raises for what is not there.
    parts: object = getattr(module, "parts", ()) if hasattr(type(module), "parts") else ()
    return cast("tuple[nn.Module, ...]", parts) if isinstance(parts, tuple) else ()


def callee_of(node: Node) -> object:
    """Returns what ``node`` runs: a module's class, a function, None for values and the output."""
    if node.op == "call_module":
        return type(module_of(node))
    return node.target if node.op == "call_function" else None


def runs(callee: object, target: Target) -> bool:
    """Tells whether what ``callee_of`` returned is ``target``; a module class admits subclasses."""
    if isinstance(target, type):
        return isinstance(callee, type) and issubclass(callee, target)
    if isinstance(target, OpOverloadPacket):
        return isinstance(callee, OpOverload) and callee.overloadpacket is target
    return callee is target


def is_call(node: Node, target: Target) -> bool:
    """Tells whether ``node`` runs ``target``; a module class admits its subclasses."""
    return runs(callee_of(node), target)


def value_of(node: Node) -> object:
    """Returns the recorded (fake) value of ``node``, None where tracing recorded none."""
    return node.meta.get("val")


def shape_of(node: Node) -> tuple[int | SymInt, ...] | None:
    """Returns the shape of the tensor that ``node`` yields, None if it yields no single tensor."""
    value = value_of(node)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def dtype_of(node: Node) -> torch.dtype | None:
    """Returns the dtype of the tensor that ``node`` yields, None if it yields no single tensor."""
    value = value_of(node)
    return value.dtype if isinstance(value, Tensor) else None


def source_line(node: Node) -> str | None:
    """Returns ``file:line`` of the user's code that made ``node``: the innermost outside torch."""
    trace = node.meta.get("stack_trace")
    return _innermost_line(trace) if isinstance(trace, str) else None


@lru_cache(maxsize=4096)  # thousands of nodes share the lines of one model
def _innermost_line(trace: str) -> str | None:
    innermost: str | None = None
    end = len(trace)
    while (start := trace.rfind('File "', 0, end)) >= 0:
        found, end = _FRAME.match(trace, start), start
        if found is None:
            continue
        line = f"{found['file']}:{found['line']}"
        # "<eval_with_key>" is code that torch.fx wrote, not the user.
        if not found["file"].startswith((_TORCH_ROOT, "<")):
            return line
        innermost = innermost or line
    return innermost


def module_path(node: Node) -> str:
    """Returns the path of the user's module in which ``node`` was made, "" for the root."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    if not isinstance(stack, dict) or not stack:
        return ""
    path, _ = list(cast("dict[str, tuple[str, object]]", stack).values())[-1]
    return str(path).removeprefix("L['self']").removeprefix(".")


def input_nodes(argument: Argument) -> Iterator[Node]:
    """Yields the nodes inside an argument, nested lists and dicts included, in order."""
    if isinstance(argument, Node):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from input_nodes(item)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from input_nodes(item)
    elif isinstance(argument, slice):
        yield from input_nodes((argument.start, argument.stop, argument.step))


def bound_arguments(node: Node) -> dict[str, Argument]:
    """Returns the arguments of an ATen call by their schema names, defaults filled in.

    So positional, keyword and left-out spellings of one call give the same dictionary. For any
    other node the positions ("0", "1", …) and the keywords themselves are the names.
    """
    if not isinstance(node.target, OpOverload):
        positional: dict[str, Argument] = {str(i): value for i, value in enumerate(node.args)}
        return {**positional, **node.kwargs}
    bound: dict[str, Argument] = {}
    for position, parameter in enumerate(node.target._schema.arguments):
        if position < len(node.args) and not parameter.kwarg_only:
            bound[parameter.name] = node.args[position]
        elif parameter.name in node.kwargs:
            bound[parameter.name] = node.kwargs[parameter.name]
        elif parameter.has_default_value():
            bound[parameter.name] = parameter.default_value
    return bound
