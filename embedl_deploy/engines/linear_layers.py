"""A copy of a module in which every linear operation is a layer of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.engines.integer_graph import operation
from embedl_deploy.tracing.light_copy import light_copy


@dataclass(frozen=True)
class LinearLayers:
    """A copy of a module, and its linear layers in order."""

    module: nn.Module
    by_name: dict[str, nn.Linear]
    """By their place in the copy."""

    paths: dict[str, str]
    """For each name the place of the layer in the model."""


def with_linear_layers(module: nn.Module) -> LinearLayers:
    """Returns a copy of ``module`` around the same tensors, for weights to be replaced in.

    In a flat graph each ``aten.linear`` on a parameter becomes an ``nn.Linear``; its path is that
    of the weight. Other modules have their layers already. The module itself keeps its weights.
    """
    copied = light_copy(module)
    paths: dict[str, str] = {}
    if isinstance(copied, GraphModule):
        for node in tuple(copied.graph.nodes):
            if operation(node) == "linear":
                _lift(copied, node, paths)
        copied.graph.eliminate_dead_code()
        copied.recompile()
    layers = linear_layers_of(copied)
    return LinearLayers(copied, layers, {name: paths.get(name, name) for name in layers})


def linear_layers_of(module: nn.Module) -> dict[str, nn.Linear]:
    """Returns the linear layers of ``module`` by their places, in order."""
    named = cast("Iterable[tuple[str, nn.Module]]", module.named_modules())
    return {name: part for name, part in named if isinstance(part, nn.Linear)}


def _lift(graph_module: GraphModule, node: Node, paths: dict[str, str]) -> None:
    weight = _parameter(graph_module, node, 1)
    bias = _parameter(graph_module, node, 2)
    has_bias = len(node.args) > 2 and node.args[2] is not None
    if weight is None or (bias is None and has_bias):
        return
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=has_bias, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    name = f"_linear_of_{node.name}"
    graph_module.add_submodule(name, layer.eval())
    paths[name] = str(node.all_input_nodes[1].target).removesuffix(".weight")
    with graph_module.graph.inserting_before(node):
        call = graph_module.graph.call_module(name, node.args[:1])
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    graph_module.graph.erase_node(node)


def _parameter(graph_module: GraphModule, node: Node, position: int) -> Tensor | None:
    read = node.args[position] if len(node.args) > position else None
    if not isinstance(read, Node) or read.op != "get_attr":
        return None
    value: object = graph_module
    for name in str(read.target).split("."):
        value = getattr(value, name)
    return value.detach() if isinstance(value, Tensor) and value.is_floating_point() else None
