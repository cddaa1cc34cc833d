"""A flat fx graph as JSON and tensors, and back; reading one runs no code from the file."""

# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from embedl_deploy.errors import CheckpointError
from embedl_deploy.graph.traced_module import container_at
from embedl_deploy.lowering.literals import Json, decode, encode
from embedl_deploy.lowering.stitch import attribute
from embedl_deploy.lowering.units import is_size_arithmetic
from embedl_deploy.quantization.quantize_dequantize import decomposed

_NAMESPACES = ("aten", "prims", "quantized_decomposed", "torchvision", "torchao", "embedl_deploy")
_FORBIDDEN = ("from_file", "save", "load", "_print", "set_data")
"""Ops that reach beyond their tensors."""

Operation = Callable[..., object]

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

_FUNCTIONS: Mapping[str, Callable[..., object]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "eq", "ne", "lt",
            "le", "gt", "ge", "and_", "or_", "not_", "getitem", "index", "pos", "xor",
        )
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_max", "sym_min", "sym_not", "sym_int", "sym_float", "sym_ite", "sym_sum")
    },
    **{
        f"higher_order.{name}": cast("Operation", getattr(torch.ops.higher_order, name))
        for name in ("cond", "while_loop", "scan")
    },
}  # fmt: skip
"""The Python functions that a traced graph calls."""


def graph_to_json(graph_module: GraphModule) -> tuple[Json, dict[str, Tensor]]:
    """Returns the graph as JSON and the tensors it reads.

    Raises:
        CheckpointError: The graph calls modules, or functions that have no name as data.
    """
    tensors: dict[str, Tensor] = {}
    bodies: dict[str, Json] = {}
    parameters: dict[str, None] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        path = str(node.target)
        value = attribute(graph_module, path)
        if isinstance(value, GraphModule):
            bodies[path], inner = graph_to_json(value)
            tensors.update({f"{path}.{name}": tensor for name, tensor in inner.items()})
            continue
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"%{node.name} reads {path}, a {type(value).__name__}: only graphs whose "
                "attributes are tensors, or the branches of control flow, can be saved"
            )
        if isinstance(value, nn.Parameter):
            parameters[path] = None
        tensors[path] = value.detach()
    devices: dict[str, Json] = {
        path: str(tensor.device) for path, tensor in tensors.items() if not tensor.is_cpu
    }
    saved: dict[str, Json] = {
        "nodes": [_node_to_json(node) for node in graph_module.graph.nodes],
        "parameters": list(parameters),
        "devices": devices,
        "bodies": bodies,
    }
    return saved, tensors


def graph_from_json(data: Json, tensors: Mapping[str, Tensor]) -> GraphModule:
    """Returns the graph that ``graph_to_json`` was given.

    Raises:
        CheckpointError: The JSON describes no graph, or one that calls what no traced graph does.
    """
    content = fields(data, "graph")
    parameters = content.get("parameters")
    tensors = _on_devices(tensors, fields(content.get("devices", {}), "table of devices"))
    bodies = fields(content.get("bodies", {}), "table of branches")
    own = {p: t for p, t in tensors.items() if not any(p.startswith(f"{b}.") for b in bodies)}
    root = _root(own, parameters if isinstance(parameters, list) else [])
    for path, body in bodies.items():
        _add_body(root, path, body, tensors)
    graph = Graph()
    known: dict[str, Node] = {}
    listed = content.get("nodes")
    if not isinstance(listed, list):
        raise CheckpointError("a saved graph must list its nodes")
    for saved in listed:
        _add_node(graph, fields(saved, "node"), known, (*own, *bodies))
    try:
        graph.lint()
        return GraphModule(root, graph, "Core").eval()
    except (RuntimeError, AttributeError, SyntaxError) as error:
        raise CheckpointError(f"the saved graph does not hold together: {error}") from error


def fields(value: Json, what: str) -> dict[str, Json]:
    """Returns a JSON object as such.

    Raises:
        CheckpointError: It is something else.
    """
    if not isinstance(value, dict):
        raise CheckpointError(f"a saved {what} must be an object, got {str(value)[:80]}")
    return value


def _node_to_json(node: Node) -> Json:
    saved: dict[str, Json] = {
        "op": node.op,
        "name": node.name,
        "target": _target_name(node),
        "args": encode(tuple(node.args)),
        "kwargs": encode(dict(node.kwargs)),
    }
    if is_size_arithmetic(node):
        saved["size"] = True
    return saved


def _target_name(node: Node) -> str:
    target = node.target
    if node.op in ("placeholder", "get_attr", "output"):
        return str(target)
    if node.op == "call_function" and isinstance(target, OpOverload):
        name = f"{target.namespace}::{target._opname}.{target._overloadname}"
        if _operation(name) is target:
            return name
    for name, function in _FUNCTIONS.items():
        if function is target:
            return name
    raise CheckpointError(
        f"%{node.name} runs {target}, which has no form as data: only graphs of registered "
        "operations can be saved"
    )


def _operation(name: str) -> Operation | None:
    """Returns the registered op of that name, None if there is none or it is not allowed."""
    found = re.fullmatch(r"(\w+)::(\w+)\.(\w+)", name)
    if found is None or found[1] not in _NAMESPACES or found[2] in _FORBIDDEN:
        return None
    if found[1] == "quantized_decomposed":
        decomposed()  # registers them: a process that only loads has not done so yet
    try:
        packet = getattr(getattr(torch.ops, found[1]), found[2])
        operation: object = getattr(packet, found[3])
    except AttributeError:
        return None
    return cast("Operation", operation) if isinstance(operation, OpOverload) else None


def _add_node(
    graph: Graph, saved: dict[str, Json], known: dict[str, Node], attributes: Sequence[str]
) -> None:
    op, name, target = saved.get("op"), saved.get("name"), saved.get("target")
    if not isinstance(op, str) or not isinstance(name, str) or not isinstance(target, str):
        raise CheckpointError(f"a saved node lacks its op, name or target: {str(saved)[:80]}")
    args, kwargs = decode(saved.get("args"), known), decode(saved.get("kwargs"), known)
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise CheckpointError(f"the arguments of saved node {name} are damaged")
    kwargs = cast("dict[object, object]", kwargs)
    if not _is_name(name) or not all(isinstance(key, str) and _is_name(key) for key in kwargs):
        raise CheckpointError(f"a saved node has an impossible name: {name[:80]!r}")
    node = graph.create_node(op, _target(op, target, attributes), args, kwargs, name)  # type: ignore[arg-type]
    if node.name != name and op != "output":
        raise CheckpointError(f"the saved graph has two nodes named {name}")
    if saved.get("size") is True:
        node.meta["is_size"] = True
    known[name] = node


def _target(op: str, target: str, attributes: Sequence[str]) -> str | Callable[..., object]:
    if op == "placeholder" and _is_name(target):
        return target
    if op == "output":
        return "output"
    if op == "get_attr" and target in attributes:
        return target
    if op == "call_function":
        function = _FUNCTIONS.get(target) or _operation(target)
        if function is not None:
            return function
        raise CheckpointError(
            f"the saved graph calls {target[:80]!r}, which is not registered here or not allowed: "
            "import the library that defines it first"
        )
    raise CheckpointError(f"the saved graph has an impossible node: {op[:20]!r} {target[:80]!r}")


def _on_devices(tensors: Mapping[str, Tensor], devices: Mapping[str, Json]) -> dict[str, Tensor]:
    try:
        return {
            path: tensor.to(torch.device(str(devices[path])))
            if path in devices and not tensor.is_meta
            else tensor
            for path, tensor in tensors.items()
        }
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"the model was saved on a device that is not here: {error}"
        ) from error


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("__")


def _add_body(root: nn.Module, path: str, body: Json, tensors: Mapping[str, Tensor]) -> None:
    """Registers the graph of a branch, or of a loop's body."""
    prefix = f"{path}."
    inner = {p.removeprefix(prefix): t for p, t in tensors.items() if p.startswith(prefix)}
    _check_path(path)
    parent, _, name = path.rpartition(".")
    container_at(root, parent)._modules[name] = graph_from_json(body, inner)


def _check_path(path: str) -> None:
    if _PATH.fullmatch(path) is None or any(part.startswith("__") for part in path.split(".")):
        raise CheckpointError(f"a saved attribute has an impossible name: {path[:80]!r}")


def _root(tensors: Mapping[str, Tensor], parameters: list[Json]) -> nn.Module:
    root = nn.Module()
    for path, tensor in tensors.items():
        _check_path(path)
        parent, _, name = path.rpartition(".")
        owner = container_at(root, parent)
        if path in parameters:
            owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[name] = tensor
    return root
