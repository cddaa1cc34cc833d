"""The dry run: what would be cut where, without building anything."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.fx import Node

from embedl_deploy.lowering.report import (
    BoundaryValue,
    LoweringPlan,
    NodeRefusal,
    SubgraphReport,
)
from embedl_deploy.lowering.sizes import size_of
from embedl_deploy.lowering.stitch import Piece

_TINY = 3


def describe_piece(
    piece: Piece, description: str, values: Mapping[Node, object] | None = None
) -> SubgraphReport:
    """Returns what a report says of a subgraph before it is built."""
    subgraph = piece.subgraph
    return SubgraphReport(
        name=subgraph.name,
        engine=subgraph.engine,
        description=description,
        nodes=tuple(node.name for node in subgraph.nodes),
        inputs=tuple(_boundary(node, values or {}) for node in piece.inputs),
        outputs=tuple(_boundary(node, values or {}) for node in piece.outputs),
    )


def plan_of(
    subgraphs: Sequence[SubgraphReport],
    eager_nodes: Sequence[Node],
    refusals: Sequence[NodeRefusal],
    simulated: Sequence[Node] = (),
    idle_pins: Sequence[str] = (),
) -> LoweringPlan:
    """Returns the plan, with what its author should look at.

    Args:
        subgraphs: What engines run.
        eager_nodes: What nobody takes.
        refusals: What the engines said.
        simulated: What would quantize or dequantize in float arithmetic.
        idle_pins: Patterns of ``engines`` that pinned nothing.
    """
    return LoweringPlan(
        subgraphs=tuple(subgraphs),
        eager_nodes=tuple(node.name for node in eager_nodes),
        refusals=tuple(refusals),
        recommendations=(
            *_on_simulated(simulated),
            *map(_on_idle_pin, idle_pins),
            *_recommendations(subgraphs, eager_nodes, refusals),
        ),
    )


def _on_idle_pin(pattern: str) -> str:
    return (
        f"engines pins {pattern!r}, and no operation was made under such a path (or an earlier "
        "pattern took it): patterns are compared with module paths such as 'encoder.layer.0'"
    )


def _on_simulated(nodes: Sequence[Node]) -> list[str]:
    if not nodes:
        return []
    return [
        f"lower() will refuse: {len(nodes)} quantize or dequantize operations have no integer "
        f"kernel here and would run as float arithmetic, the first at {nodes[0].name}; give an "
        "engine that takes them, or allow_simulated=True"
    ]


def _recommendations(
    subgraphs: Sequence[SubgraphReport],
    eager_nodes: Sequence[Node],
    refusals: Sequence[NodeRefusal],
) -> list[str]:
    found: list[str] = []
    tiny = [subgraph.name for subgraph in subgraphs if len(subgraph.nodes) < _TINY]
    if tiny and len(subgraphs) > 1:
        found.append(
            f"{len(tiny)} of {len(subgraphs)} subgraphs have fewer than {_TINY} nodes: "
            f"min_nodes={_TINY} would run them eager and save their calls"
        )
    eager = {node.name for node in eager_nodes}
    counts: dict[tuple[str, str], int] = {}
    for refusal in refusals:
        if refusal.node in eager:
            key = (refusal.operation, refusal.reason)
            counts[key] = counts.get(key, 0) + 1
    worst = max(counts.items(), key=lambda item: item[1], default=None)
    if worst is not None and len(subgraphs) > 1:
        (operation, reason), count = worst
        found.append(f"{operation} cuts the graph most often ({count} nodes run eager): {reason}")
    if not subgraphs:
        found.append("no engine takes any node: lowering would change nothing")
    return found


def _boundary(node: Node, values: Mapping[Node, object]) -> BoundaryValue:
    recorded = node.meta.get("val")
    actual = values.get(node)
    if not isinstance(recorded, Tensor):
        recorded = actual
    if not isinstance(recorded, Tensor):
        return BoundaryValue(node.name, type(recorded).__name__, (), 0)
    sizes = tuple(size_of(size) for size in recorded.shape)
    shape = actual.shape if isinstance(actual, Tensor) else recorded.shape
    return BoundaryValue(
        node.name,
        str(recorded.dtype).removeprefix("torch."),
        sizes,
        _count(shape) * recorded.dtype.itemsize,
    )


def _count(shape: Sequence[object]) -> int:
    count = 1
    for size in shape:
        hint = size if isinstance(size, int) else getattr(getattr(size, "node", None), "hint", 1)
        count *= hint if isinstance(hint, int) else 1
    return count
