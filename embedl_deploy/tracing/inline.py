"""Takes the bodies of ``no_grad`` and ``autocast(enabled=False)`` blocks out of their operation."""

from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg

from embedl_deploy.tracing.program import Program

_aten = torch.ops.aten
_SET_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_AUTOCAST_NOTE = (
    "the model switches autocast off in places (rotary embeddings do): a graph run under autocast "
    "computes them in the lower precision"
)


def inline_blocks(program: Program) -> None:
    """Replaces such blocks by their operations, which become visible to patterns.

    Values and gradients are the same: what leaves a ``no_grad`` block is detached. A block that
    only switches autocast off loses that effect, and the record says so.
    """
    graph = program.graph
    pending = [node for node in graph.nodes if _body_position(node) is not None]
    while pending:
        block = pending.pop(0)
        position = cast("int", _body_position(block))
        body_node = cast("Node", block.args[position])
        body = program.attributes.get(str(body_node.target))
        if not isinstance(body, GraphModule):
            continue
        detached = block.target is _SET_GRAD and block.args[0] is False
        if block.target is _AUTOCAST and _AUTOCAST_NOTE not in program.record.notes:
            program.record.notes.append(_AUTOCAST_NOTE)
        inputs = list(block.args[position + 1 :])
        results, inner = _inlined(program, block, body, inputs, detached)
        for user in list(block.users):
            user.replace_all_uses_with(cast("Node", results[cast("int", user.args[1])]))
            graph.erase_node(user)
        graph.erase_node(block)
        _forget(program, body_node)
        pending.extend(inner)


def _body_position(node: Node) -> int | None:
    """Returns which argument of ``node`` is the body, None if it is no block to take apart."""
    if node.op == "call_function" and node.target is _SET_GRAD:
        return 1
    is_autocast = node.op == "call_function" and node.target is _AUTOCAST
    return 4 if is_autocast and node.args[2] is False else None


def _inlined(
    program: Program, block: Node, body: GraphModule, inputs: list[Argument], detached: bool
) -> tuple[list[Argument], list[Node]]:
    """Copies ``body`` before ``block``; returns its results and the blocks inside it."""
    inner: list[Node] = []
    mapped: dict[Node, Argument] = {}
    remaining = iter(inputs)
    with program.graph.inserting_before(block):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                mapped[node] = next(remaining)
            elif node.op == "output":
                found = cast("list[Argument]", map_arg(node.args[0], mapped.__getitem__))  # pyright: ignore[reportArgumentType]  # literals may be outputs
                return [_detached(value) if detached else value for value in found], inner
            else:
                copied = _copied(program, node, body, mapped)
                mapped[node] = copied
                inner.extend([copied] if _body_position(copied) is not None else [])
    raise AssertionError("a block without an output")


def _copied(program: Program, node: Node, body: GraphModule, mapped: dict[Node, Argument]) -> Node:
    copied = program.graph.node_copy(node, mapped.__getitem__)  # pyright: ignore[reportArgumentType]  # literals may be inputs
    if node.op == "get_attr":
        number = 0
        while (name := f"{node.target}_inlined_{number}") in program.attributes:
            number += 1
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
