"""Which ops only carry values on, so that quantizers can be followed through them."""

from collections.abc import Iterator

from torch import nn
from torch._ops import OpOverload
from torch.fx import Node

from embedl_deploy.graph.nodes import input_nodes, module_of
from embedl_deploy.modules.kinds import MAX_POOLS

_RESHAPES = frozenset(
    {
        "_unsafe_view",
        "alias",
        "clone",
        "contiguous",
        "detach",
        "expand",
        "flatten",
        "movedim",
        "permute",
        "pixel_shuffle",
        "reshape",
        "squeeze",
        "t",
        "transpose",
        "unflatten",
        "unsqueeze",
        "view",
    }
)
_MAX_POOLS = frozenset({"max_pool1d", "max_pool2d", "max_pool3d"})
_JOINS = frozenset({"cat", "concat", "stack"})
_PARTS = frozenset({"slice", "select", "narrow", "index_select"})
_RESHAPE_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, *MAX_POOLS)


def op_name(node: Node) -> str:
    """Returns the name of the ATen op that ``node`` calls, all overloads alike, or ``""``."""
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, OpOverload) else ""


def shared_inputs(node: Node) -> tuple[Node, ...]:
    """Returns the inputs whose scale the output of ``node`` has to share.

    Those of reshapes, max-pooling and concatenation: their output holds values of their inputs
    and nothing else, so that in integers they run on the codes themselves. Any other node has
    none.
    """
    name = op_name(node)
    if name in _JOINS:
        return tuple(input_nodes(node.args[0]))
    is_carrier = name in _RESHAPES or name in _MAX_POOLS
    if is_carrier or isinstance(module_of(node), _RESHAPE_MODULES):
        return tuple(node.all_input_nodes[:1])
    return ()


def carrier_kind(node: Node) -> str:
    """Returns ``"concat"``, ``"max-pool"`` or ``"reshape"`` for a node with ``shared_inputs``."""
    if op_name(node) in _JOINS:
        return "concat"
    is_pool = op_name(node) in _MAX_POOLS or isinstance(module_of(node), MAX_POOLS)
    return "max-pool" if is_pool else "reshape"


def carries_values(node: Node) -> bool:
    """Tells whether the output of ``node`` holds values of its inputs and nothing else."""
    return op_name(node) in _PARTS or bool(shared_inputs(node))


def readers(node: Node) -> Iterator[Node]:
    """Yields the nodes that do something with the values of ``node``, however they get there."""
    seen = {node}
    waiting = list(node.users)
    while waiting:
        reader = waiting.pop(0)
        if reader in seen:
            continue
        seen.add(reader)
        if carries_values(reader):
            waiting += reader.users
        else:
            yield reader
