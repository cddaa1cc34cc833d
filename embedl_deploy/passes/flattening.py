"""Turns the call of a module into the ATen calls that it makes."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from embedl_deploy.graph.nodes import value_of

Attributes = dict[int, str]
"""Where a tensor is registered, by the identity of the tensor."""


def flatten_call(
    node: Node,
    function: Callable[..., object],
    attributes: Attributes,
) -> None:
    """Replaces ``node`` by the ATen calls that ``function`` makes on the node's inputs.

    The calls are recorded on fake tensors, symbolic sizes included; nothing is computed. Tensors
    that ``function`` closes over become reads of the places where they are registered.

    Args:
        node: A call; erased at the end.
        function: Takes what the node takes and returns what it yields.
        attributes: Where each tensor that ``function`` closes over is registered.
    """

    def call(*inputs: object) -> object:
        return function(*inputs)

    values = [value_of(argument) for argument in _inputs(node)]
    mode = detect_fake_mode(values)
    environment = None if mode is None else mode.shape_env
    # Which kernel suits a size is no fact about the model: it must not become a guard.
    unguarded = nullcontext() if environment is None else environment.suppress_guards()
    with torch.no_grad(), unguarded:
        traced = make_fx(call, pre_dispatch=True, _allow_non_fake_inputs=True)(*values)
    # A weight that is computed when it is read, and read for its shape only, leaves dead calls.
    traced.graph.eliminate_dead_code()
    replacement = _splice(node, traced, attributes)
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def attributes_of(model: nn.Module) -> Attributes:
    """Returns where each parameter and buffer of ``model`` is registered first."""
    found: Attributes = {}
    tensors: Iterable[tuple[str, Tensor]] = (*model.named_parameters(), *model.named_buffers())
    for path, tensor in tensors:
        found.setdefault(id(tensor), path)
    return found


def _inputs(node: Node) -> tuple[Node, ...]:
    return tuple(argument for argument in node.args if isinstance(argument, Node))


def _splice(node: Node, traced: GraphModule, attributes: Attributes) -> Node:
    """Copies the traced calls before ``node`` and returns the one that yields its value."""
    mapped: dict[Node, Node] = {}
    inputs = iter(_inputs(node))
    for step in traced.graph.nodes:
        if step.op == "placeholder":
            mapped[step] = next(inputs)
        elif step.op == "output":
            return mapped[cast("Node", step.args[0])]
        else:
            mapped[step] = _copied(step, node, traced, attributes, mapped)
    raise AssertionError("a traced graph ends in an output")


def _copied(
    step: Node, node: Node, traced: GraphModule, attributes: Attributes, mapped: dict[Node, Node]
) -> Node:
    graph = node.graph
    with graph.inserting_before(node):
        if step.op == "get_attr":
            tensor = getattr(traced, str(step.target))
            new = graph.get_attr(attributes[id(tensor)])
        else:
            new = graph.node_copy(step, mapped.__getitem__)
    for key in ("stack_trace", "nn_module_stack", "rewrites"):
        if key in node.meta:
            new.meta[key] = node.meta[key]
    new.meta["val"] = step.meta["val"]
    return new
