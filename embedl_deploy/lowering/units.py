"""The vertices that partitioning works on: nodes that must stay together, and what they read."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from embedl_deploy.engines.integer_graph import rounds_to_float8
from embedl_deploy.lowering.mutation import ordering_edges, writes_memory

_SYMBOLIC_MODULES = (operator.__name__, "_operator", math.__name__)
_SIZE_OPS = (
    torch.ops.aten.sym_size.int,
    torch.ops.aten.sym_stride.int,
    torch.ops.aten.sym_numel.default,
    torch.ops.aten.sym_storage_offset.default,
)


@dataclass(frozen=True)
class Units:
    """A graph as vertices; numbers are positions in a topological order."""

    nodes: tuple[tuple[Node, ...], ...]
    """The nodes of each unit: one, or one and its ``getitem``s, or an atomic group."""

    reads: tuple[tuple[int, ...], ...]
    """The units that each unit reads, or must run after."""

    writers: frozenset[Node] = frozenset()
    """The nodes that write into memory in place."""


def is_step(node: Node) -> bool:
    """Tells whether a node computes something that must run where partitioning puts it.

    Inputs and attributes are there from the start, and arithmetic on sizes is so cheap that every
    subgraph repeats what it needs of it.
    """
    return node.op not in ("placeholder", "get_attr", "output") and not is_size_arithmetic(node)


def is_size_arithmetic(node: Node) -> bool:
    """Tells whether a node only reads sizes of tensors, or computes with such sizes.

    A graph that was read from a file has no recorded values, but says so in ``meta["is_size"]``.
    """
    if node.op != "call_function":
        return False
    meta = node.meta
    value = meta.get("val")
    if isinstance(value, Tensor):
        return False
    if node.target in _SIZE_OPS or meta.get("is_size"):
        return True
    if not isinstance(value, (SymInt, SymBool, SymFloat)):
        return False
    module = getattr(node.target, "__module__", "") or ""
    if module not in _SYMBOLIC_MODULES and not module.startswith("torch.fx.experimental.sym"):
        return node.target in (torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_int)
    return all(read.op == "placeholder" or is_size_arithmetic(read) for read in inputs_of(node))


def is_quantization(node: Node) -> bool:
    """Tells whether a node quantizes or dequantizes; float8 is spelled as a cast."""
    if not isinstance(node.target, OpOverload):
        return False
    return node.target.namespace == "quantized_decomposed" or rounds_to_float8(node)


def inputs_of(node: Node) -> list[Node]:
    """Returns the nodes that ``node`` reads, in order."""
    return node.all_input_nodes


def units_of(graph: Graph, atomic: Iterable[Sequence[Node]] = ()) -> Units:
    """Returns the units of ``graph`` in a topological order.

    Raises:
        ValueError: An atomic group cannot run in one piece: something outside it lies on a path
            between two of its nodes.
    """
    nodes: list[Node] = list(graph.nodes)
    head = {node: group[0] for group in atomic for node in group}
    grouped = bool(head)
    number: dict[Node, int] = {}
    members: list[list[Node]] = []
    for node in nodes:
        if not is_step(node):
            continue
        first = _companion(node, head) if grouped or node.target is operator.getitem else node
        unit = number.setdefault(first, len(members))
        if unit == len(members):
            members.append([node])
        else:
            members[unit].append(node)
        number[node] = unit
    writers = frozenset(node for node in nodes if writes_memory(node))
    reads = _unit_reads(nodes, number, len(members))
    if writers:
        _add_memory_order(nodes, number, reads)
    if not grouped:
        return Units(tuple(map(tuple, members)), tuple(map(tuple, reads)), writers)
    return _sorted_units(members, reads, writers)


def _companion(node: Node, head: Mapping[Node, Node]) -> Node:
    """Returns the node whose unit ``node`` belongs to: its producer's for a ``getitem``."""
    if node in head:
        return head[node]
    if node.target is operator.getitem and isinstance(node.args[0], Node) and is_step(node.args[0]):
        return _companion(node.args[0], head)
    return node


def _unit_reads(
    nodes: Sequence[Node], number: Mapping[Node, int], count: int
) -> list[dict[int, None]]:
    reads: list[dict[int, None]] = [{} for _ in range(count)]
    sources: dict[Node, tuple[int, ...]] = {}
    for node in nodes:
        here = number.get(node)
        if here is None:
            if node.op == "call_function":
                sources[node] = _sources(node, number, sources)
            continue
        into = reads[here]
        for read in node.all_input_nodes:
            there = number.get(read)
            if there is not None:
                into[there] = None
            elif read in sources:
                into.update(dict.fromkeys(sources[read]))
        into.pop(here, None)
    return reads


def _add_memory_order(
    nodes: Sequence[Node], number: Mapping[Node, int], reads: list[dict[int, None]]
) -> None:
    for earlier, later in ordering_edges(nodes):
        if earlier in number and later in number and number[earlier] != number[later]:
            reads[number[later]][number[earlier]] = None


def _sources(
    node: Node, number: Mapping[Node, int], sources: Mapping[Node, tuple[int, ...]]
) -> tuple[int, ...]:
    """Returns the units whose tensors size arithmetic reads."""
    found: dict[int, None] = {}
    for read in node.all_input_nodes:
        if read in number:
            found[number[read]] = None
        else:
            found.update(dict.fromkeys(sources.get(read, ())))
    return tuple(found)


def _sorted_units(
    members: list[list[Node]], reads: list[dict[int, None]], writers: frozenset[Node]
) -> Units:
    """Orders units so that each follows what it reads; atomic groups may have moved some."""
    waiting = [len(into) for into in reads]
    readers: list[list[int]] = [[] for _ in reads]
    for here, into in enumerate(reads):
        for there in into:
            readers[there].append(here)
    ready = [here for here, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        here = ready.pop()
        order.append(here)
        for reader in readers[here]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(order) != len(members):
        stuck = next(members[i] for i in range(len(members)) if waiting[i] and len(members[i]) > 1)
        raise ValueError(
            "an atomic group must run in one piece, but a node outside it lies on a path between "
            f"two of its nodes: {[node.name for node in stuck]}"
        )
    place = {here: position for position, here in enumerate(order)}
    return Units(
        tuple(tuple(members[here]) for here in order),
        tuple(tuple(place[there] for there in reads[here]) for here in order),
        writers,
    )
