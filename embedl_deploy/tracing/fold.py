# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Computes once what depends on no input and on no weight."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import Argument, map_arg

from embedl_deploy.tracing.clean import ASSERTS, remove_true_asserts
from embedl_deploy.tracing.program import Program, State
from embedl_deploy.tracing.settle import Number, recorded, settle_numbers

_aten = torch.ops.aten
_COPIES = (
    _aten.lift_fresh_copy.default,
    _aten.lift_fresh.default,
    _aten.detach.default,
    _aten.alias.default,
    _aten.clone.default,
)
_LIKE = (
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
_NUMBER_MODULES = ("_operator", "math", "builtins")
_LARGEST = 1 << 24
"""Elements; a larger constant is kept only if it is no larger than what it is made from."""


def fold_constants(program: Program) -> None:
    """Replaces constant subgraphs by buffers named ``_folded_constants.N``, numbers by literals.

    Constants are literals, non-persistent buffers and integer or boolean buffers. Parameters and
    float buffers of the ``state_dict`` are not: loading another one must change the result.
    """
    constant = _constant_nodes(program)
    edge = [node for node in constant if any(user not in constant for user in node.users)]
    values = _values(program, constant, edge)
    numbers: dict[Node, Number] = {}
    resized: list[Node] = []
    number = 0
    for node in edge:
        value = values[node]
        if not isinstance(value, Tensor):
            assert isinstance(value, (int, float))
            numbers[node] = value
            continue
        if node.op == "get_attr" and not program.state[str(node.target)].lifted:
            continue
        source = _copied(node)
        if source is not None and not program.state[str(source.target)].lifted:
            _redirect(node, source, constant)
            continue
        while (name := f"_folded_constants.{number}") in program.state:
            number += 1
        program.state[name] = State(value, persistent=False)
        with program.graph.inserting_before(node):
            folded = program.graph.create_node("get_attr", name, name=f"folded_constant_{number}")
        folded.meta = dict(node.meta)
        if _has_symbols(node):
            folded.meta["val"] = recorded(value, node.meta["val"])
            resized.append(folded)
        _redirect(node, folded, constant)
    settle_numbers(program.graph, numbers, resized)
    remove_true_asserts(program.graph)
    _drop_unread(program)


def _constant_nodes(program: Program) -> dict[Node, None]:
    """Returns the nodes that are constant, in graph order."""
    constant: dict[Node, None] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            state = program.state.get(str(node.target))
            if state is not None and _is_constant(state):
                constant[node] = None
        elif (
            node.op == "call_function"
            and _is_pure(node)
            # What the model returns must be a tensor of its own in every call.
            and all(user.op != "output" for user in node.users)
            and (_reads_no_values(node) or all(read in constant for read in node.all_input_nodes))
        ):
            constant[node] = None
    # A list has no buffer to live in: what non-constants read stays a call.
    for node in reversed(list(constant)):
        is_value = isinstance(node.meta.get("val"), (Tensor, *_NUMBERS))
        if not is_value and any(user not in constant for user in node.users):
            del constant[node]
    return constant


def _has_symbols(node: Node) -> bool:
    value = node.meta.get("val")
    sizes = cast("Sequence[object]", value.shape if isinstance(value, Tensor) else ())
    return not all(isinstance(size, int) for size in sizes)


def _is_constant(state: State) -> bool:
    if isinstance(state.tensor, nn.Parameter) or state.tensor.requires_grad:
        return False
    return not state.persistent or not state.tensor.dtype.is_floating_point


def _is_pure(node: Node) -> bool:
    if getattr(node.target, "__module__", "") in _NUMBER_MODULES:
        return True
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return False
    if node.target in ASSERTS:
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable:
        return False
    return not _is_too_large(node)


def _reads_no_values(node: Node) -> bool:
    """Tells whether ``node`` takes only dtype, device and known sizes from its input."""
    if node.target not in _LIKE or len(node.all_input_nodes) != 1:
        return False
    source = node.all_input_nodes[0]
    sizes: list[object] = [*node.meta["val"].shape, *source.meta["val"].shape]
    return all(isinstance(size, int) for size in sizes)


def _is_too_large(node: Node) -> bool:
    size = _size(node)
    return size > _LARGEST and size > sum(_size(read) for read in node.all_input_nodes)


def _size(node: Node) -> int:
    value = node.meta.get("val")
    sizes = cast("Sequence[object]", value.shape if isinstance(value, Tensor) else ())
    return math.prod(size if isinstance(size, int) else _LARGEST for size in sizes)


def _values(program: Program, constant: dict[Node, None], edge: list[Node]) -> dict[Node, object]:
    """Computes the constants of ``edge``; what they are made from is freed on the way."""
    needed = _needed(constant, edge)
    readers = {node: sum(user in needed for user in node.users) for node in needed}
    kept = dict.fromkeys(edge)
    values: dict[Node, object] = {}
    with torch.no_grad():
        for node in constant:
            if node not in needed:
                continue
            values[node] = _value(program, node, values)
            for read in node.all_input_nodes:
                if read not in readers:
                    continue
                readers[read] -= 1
                if readers[read] == 0 and read not in kept:
                    del values[read]
    return {node: values[node] for node in edge}


def _needed(constant: dict[Node, None], edge: list[Node]) -> dict[Node, None]:
    needed: dict[Node, None] = {}
    pending = list(edge)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed[node] = None
            pending.extend(read for read in node.all_input_nodes if read in constant)
    return needed


def _value(program: Program, node: Node, values: dict[Node, object]) -> object:
    if node.op == "get_attr":
        return program.state[str(node.target)].tensor

    def value(read: Node) -> Argument:
        return cast("Argument", values[read] if read in values else _empty(read))

    args = cast("tuple[object, ...]", map_arg(node.args, value))
    kwargs = cast("dict[str, object]", map_arg(node.kwargs, value))
    return cast("Callable[..., object]", node.target)(*args, **kwargs)


def _empty(node: Node) -> Tensor:
    """Returns a tensor of the shape, dtype and device of ``node`` that takes no memory."""
    value: Tensor = node.meta["val"]
    return torch.empty((), dtype=value.dtype, device=value.device).expand(value.shape)


def _copied(node: Node) -> Node | None:
    """Returns the ``get_attr`` node that ``node`` is a mere copy of."""
    source = node
    while source.op == "call_function" and source.target in _COPIES:
        source = cast("Node", source.args[0])
    return source if source.op == "get_attr" else None


def _redirect(node: Node, replacement: Node, constant: dict[Node, None]) -> None:
    readers = [user for user in node.users if user not in constant]
    for user in readers:
        user.replace_input_with(node, replacement)


def _drop_unread(program: Program) -> None:
    """Forgets literals that no node reads any more, and the calls that read them."""
    for node in reversed(list(program.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and _is_removable(node):
            program.graph.erase_node(node)
    read = {str(node.target) for node in program.graph.find_nodes(op="get_attr")}
    unread = [name for name, state in program.state.items() if state.lifted and name not in read]
    for name in unread:
        del program.state[name]


def _is_removable(node: Node) -> bool:
    return node.op == "get_attr" or _is_pure(node)
