"""How much of a converted graph's arithmetic is spelled in integers."""

from collections.abc import Iterator

from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from embedl_deploy.graph.macs import macs_of

_MOVES_DATA = frozenset(
    {"view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "slice"}
)


def integer_share(converted: GraphModule) -> float:
    """Returns the share of multiply-accumulates whose two operands are dequantized integers.

    Args:
        converted: The flat graph that ``convert`` returns, in which an int8 product is spelled
            as a float op that reads two ``dequantize`` ops.

    Returns:
        From 0 to 1; 0 for a graph without products. That a product is spelled so does not say
        that an engine ran it so: the lowering report counts the kernels.
    """
    total = covered = 0
    for node, is_integer in integer_products(converted):
        macs = macs_of(node)
        total += macs
        covered += macs if is_integer else 0
    return covered / total if total else 0.0


def integer_products(converted: GraphModule) -> Iterator[tuple[Node, bool]]:
    """Yields every node that multiplies, and whether its two operands are dequantized integers."""
    for node in converted.graph.nodes:
        if macs_of(node):
            yield node, _reads_integers(node)


def _reads_integers(node: Node) -> bool:
    if _name(node) == "scaled_dot_product_attention":
        return False  # its second product reads probabilities, which are never rounded inside
    operands = [argument for argument in node.args[:2] if isinstance(argument, Node)]
    return len(operands) == 2 and all(_is_dequantized(operand) for operand in operands)


def _is_dequantized(node: Node) -> bool:
    while _name(node) in _MOVES_DATA and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return _name(node).startswith("dequantize_per_")


def _name(node: Node) -> str:
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, OpOverload) else ""
