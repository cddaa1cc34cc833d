"""Which nodes write into memory that others read, and the order this asks for."""

# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.

from collections.abc import Iterable, Iterator
from functools import lru_cache

from torch._ops import OpOverload
from torch.fx import Node

Root = Node | str
"""Who owns a piece of memory: the node that made it, or the attribute it is stored in."""


def writes_memory(node: Node) -> bool:
    """Tells whether a node changes one of its inputs in place."""
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    return node.op == "call_function" and _is_mutable(node.target)


@lru_cache(maxsize=4096)
def _is_mutable(target: object) -> bool:
    return isinstance(target, OpOverload) and target._schema.is_mutable


def mutated_attributes(nodes: Iterable[Node]) -> dict[str, None]:
    """Returns the attributes (buffers, mostly) that some node writes into."""
    roots: dict[Node, tuple[Root, ...]] = {}
    found: dict[str, None] = {}
    for node in nodes:
        roots[node] = _roots(node, roots)
        if writes_memory(node):
            for root in _written(node, roots):
                if isinstance(root, str):
                    found[root] = None
    return found


def ordering_edges(nodes: Iterable[Node]) -> Iterator[tuple[Node, Node]]:
    """Yields (earlier, later) pairs: reads before the write after them, writes before reads."""
    roots: dict[Node, tuple[Root, ...]] = {}
    last_write: dict[Root, Node] = {}
    readers: dict[Root, list[Node]] = {}
    for node in nodes:
        roots[node] = _roots(node, roots)
        touched = dict.fromkeys(root for read in node.all_input_nodes for root in roots[read])
        written = _written(node, roots) if writes_memory(node) else {}
        for root in touched:
            if root in last_write:
                yield last_write[root], node
            if root not in written:
                readers.setdefault(root, []).append(node)
                continue
            for reader in readers.pop(root, ()):
                yield reader, node
            last_write[root] = node


def _roots(node: Node, roots: dict[Node, tuple[Root, ...]]) -> tuple[Root, ...]:
    """Returns who owns the memory that the value of ``node`` may share."""
    if node.op == "get_attr":
        return (str(node.target),)
    if node.op in ("placeholder", "output"):
        return (node,)
    if isinstance(node.target, OpOverload):
        shares = any(result.alias_info is not None for result in node.target._schema.returns)
        if not shares:
            return (node,)
    # A module, a method or a plain function may return a view of any input.
    shared = dict.fromkeys(root for read in node.all_input_nodes for root in roots[read])
    return (*shared, node)


def _written(node: Node, roots: dict[Node, tuple[Root, ...]]) -> dict[Root, None]:
    if not isinstance(node.target, OpOverload):
        return dict.fromkeys(roots[node.all_input_nodes[0]])
    found: dict[Root, None] = {}
    for position, parameter in enumerate(node.target._schema.arguments):
        if parameter.alias_info is None or not parameter.alias_info.is_write:
            continue
        value = node.kwargs.get(parameter.name)
        if value is None and position < len(node.args):
            value = node.args[position]
        values = value if isinstance(value, (list, tuple)) else [value]
        for item in values:
            if isinstance(item, Node):
                found.update(dict.fromkeys(roots[item]))
    return found
