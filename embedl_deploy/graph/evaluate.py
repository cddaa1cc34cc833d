# pyright: reportPrivateUsage=false
# torch keeps the tables of a module private; its own lookup takes several times as long.
"""Runs some nodes of a graph on given values, without making a graph of them."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg

from embedl_deploy.graph.nodes import graph_module_of, module_at, module_of, value_of


def evaluate(nodes: Sequence[Node], given: Mapping[Node, object]) -> dict[Node, object]:
    """Returns the value of every node in ``nodes``, computed in graph order.

    Args:
        nodes: Calls and reads of parameters.
        given: The values of all nodes that these read from outside, reads of parameters aside.
    """
    known: dict[Node, object] = dict(given)

    def load(read: Node) -> Argument:
        if read not in known and read.op == "get_attr":
            known[read] = attribute_of(graph_module_of(read), str(read.target))
        return cast("Argument", known[read])

    for node in sorted(nodes):
        if node.op == "get_attr":
            load(node)
            continue
        args = cast("tuple[object, ...]", map_arg(node.args, load))
        kwargs = cast("dict[str, object]", map_arg(node.kwargs, load))
        known[node] = _call(node, args, kwargs)
    return {node: known[node] for node in nodes}


def attribute_of(graph_module: GraphModule, path: str) -> object:
    """Returns what a ``get_attr`` node of ``path`` reads."""
    parent, _, name = path.rpartition(".")
    owner = module_at(graph_module, parent) if parent else graph_module
    if owner is not None:
        # The tables that a module's own lookup asks last, when all else has failed.
        held = owner._parameters.get(name)
        held = owner._buffers.get(name) if held is None else held
        if held is not None:
            return held
    return attrgetter(path)(graph_module)


def sample_value(node: Node, generator: torch.Generator) -> object:
    """Returns a random value of the shape, dtype and strides recorded for ``node``.

    Floating-point values are standard normal; integers are 0 or 1, so that they are valid as
    indices. Symbolic sizes take the value they had at tracing.
    """
    return _sample(value_of(node), generator)


def size_hint(size: int | torch.SymInt) -> int:
    """Returns a size as a number: for a symbolic one the value it had at tracing."""
    return size if isinstance(size, int) else int(cast("int | None", size.node.hint) or 2)


def _sample(value: object, generator: torch.Generator) -> object:
    if isinstance(value, (tuple, list)):
        return [_sample(item, generator) for item in cast("tuple[object, ...]", value)]
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return cast("object", value.node.hint)
    if not isinstance(value, Tensor):
        return value
    shape = [size_hint(size) for size in value.shape]
    if value.dtype.is_floating_point or value.dtype.is_complex:
        made = torch.randn(shape, generator=generator, dtype=torch.float64).to(value.dtype)
    else:
        made = torch.randint(0, 2, shape, generator=generator).to(value.dtype)
    return _with_order(made, value).to(value.device)


def _with_order(made: Tensor, like: Tensor) -> Tensor:
    """Lays ``made`` out with its dimensions in memory in the order of those of ``like``."""
    strides = [size_hint(stride) for stride in like.stride()]
    order = sorted(range(made.dim()), key=lambda axis: -strides[axis])
    inverse = [order.index(axis) for axis in range(made.dim())]
    return made.permute(order).contiguous().permute(inverse)


def _call(node: Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    if node.op == "call_module":
        module = module_of(node)
        if module is None:
            raise AttributeError(f"no module is registered at {node.target}")
        return module(*args, **kwargs)
    if callable(node.target):
        return node.target(*args, **kwargs)
    raise TypeError(f"a node of kind {node.op} cannot be evaluated")
