"""Takes the bodies of ``torch.no_grad`` blocks out of their higher-order operation."""

from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg

from embedl_deploy.tracing.program import Program

_aten = torch.ops.aten
_SET_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled


def inline_grad_modes(program: Program) -> None:
    """Replaces ``no_grad`` blocks by their operations, and their results by detached ones.

    Values and gradients are the same; the operations become visible to patterns.
    """
    graph = program.graph
    pending = [node for node in graph.nodes if _is_block(node)]
    while pending:
        block = pending.pop(0)
        enabled, body_node, *inputs = block.args
        body = program.attributes.get(str(cast("Node", body_node).target))
        if not isinstance(body, GraphModule):
            continue
        results = _inlined(program, block, body, inputs, detached=enabled is False)
        for user in list(block.users):
            user.replace_all_uses_with(cast("Node", results[cast("int", user.args[1])]))
            graph.erase_node(user)
        inner = [node for node in _between(body_node, block) if _is_block(node)]
        graph.erase_node(block)
        _forget(program, cast("Node", body_node))
        pending.extend(inner)


def _is_block(node: Node) -> bool:
    return node.op == "call_function" and node.target is _SET_GRAD


def _between(first: Argument, last: Node) -> list[Node]:
    found: list[Node] = []
    node = last.prev
    while node is not first and node.op != "root":
        found.append(node)
        node = node.prev
    return found[::-1]


def _inlined(
    program: Program, block: Node, body: GraphModule, inputs: list[Argument], detached: bool
) -> list[Argument]:
    mapped: dict[Node, Argument] = {}
    remaining = iter(inputs)
    with program.graph.inserting_before(block):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                mapped[node] = next(remaining)
            elif node.op == "output":
                found = cast("list[Argument]", map_arg(node.args[0], mapped.__getitem__))  # pyright: ignore[reportArgumentType]  # literals may be outputs
                return [_detached(value) if detached else value for value in found]
            else:
                mapped[node] = _copied(program, node, body, mapped)
    return []


def _copied(
    program: Program, node: Node, body: GraphModule, mapped: dict[Node, Argument]
) -> Node:
    copied = program.graph.node_copy(node, mapped.__getitem__)  # pyright: ignore[reportArgumentType]  # literals may be inputs
    if node.op == "get_attr":
        name = f"{node.target}_inlined_{len(program.attributes)}"
        program.attributes[name] = getattr(body, str(node.target))
        copied.target = name
    return copied


def _detached(value: Argument) -> Argument:
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), Tensor):
        return value
    if not value.meta["val"].dtype.is_floating_point:
        return value
    detached = value.graph.create_node("call_function", _aten.detach.default, (value,))
    detached.meta = dict(value.meta)
    return detached


def _forget(program: Program, body_node: Node) -> None:
    if not body_node.users:
        program.attributes.pop(str(body_node.target), None)
        program.graph.erase_node(body_node)
