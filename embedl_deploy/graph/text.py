"""Prints a graph the way golden files, errors and reports show it."""

import re
from typing import cast

from torch import SymInt, Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import module_of, value_of

_DTYPES = {
    "float32": "f32",
    "float64": "f64",
    "float16": "f16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "bool": "bool",
}
_SYMBOL = re.compile(r"\b[su]\d+\b")


def graph_text(graph_module: GraphModule) -> str:
    """Returns one line per node: name, dtype and shape, what runs, on which nodes.

    Symbols of dynamic dimensions are renamed to d0, d1, … in order of appearance, so that the
    text is the same in every process.
    """
    lines = [node_text(node) for node in graph_module.graph.nodes]
    symbols: dict[str, str] = {}
    return "\n".join(
        _SYMBOL.sub(lambda found: symbols.setdefault(found[0], f"d{len(symbols)}"), line)
        for line in lines
    )


def node_text(node: Node) -> str:
    """Returns the line that shows ``node``."""
    arguments = _call_text(node.args, node.kwargs)
    if node.op == "output":
        return f"return {_argument_text(node.args[0])}"
    return f"%{node.name}{_value_text(value_of(node))} = {label(node)}{arguments}"


def label(node: Node) -> str:
    """Returns what ``node`` runs, without its arguments."""
    if node.op == "placeholder":
        return f"input {node.target}"
    if node.op == "get_attr":
        return f"get {node.target}"
    if node.op == "call_module":
        return _module_text(node)
    if isinstance(node.target, OpOverload):
        return str(cast("object", node.target))
    return str(getattr(node.target, "__name__", node.target))


def _module_text(node: Node) -> str:
    module = module_of(node)
    if module is None:
        return f"missing module {node.target}"
    return module_label(module, str(node.target))


def module_label(module: nn.Module, path: str) -> str:
    """Returns class, settings and path of a module."""
    return f"{type(module).__name__}({module.extra_repr()})[{path}]"


def _call_text(args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> str:
    parts = [_argument_text(argument) for argument in args]
    parts += [f"{name}={_argument_text(value)}" for name, value in kwargs.items()]
    return f"({', '.join(parts)})" if parts else ""


def _argument_text(argument: Argument) -> str:
    if isinstance(argument, Node):
        return f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(_argument_text(item) for item in argument)
        return f"[{inner}]" if isinstance(argument, list) else f"({inner})"
    if isinstance(argument, dict):
        inner = ", ".join(f"{key!r}: {_argument_text(item)}" for key, item in argument.items())
        return "{" + inner + "}"
    return str(argument)


def _value_text(value: object) -> str:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        sizes = ", ".join(str(size) for size in value.shape)
        return f": {_DTYPES.get(dtype, dtype)}[{sizes}]"
    if isinstance(value, SymInt):
        return f": {value}"
    return ""
