"""Finds what the named decisions of a target's table are about, and tells what they did."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import module_of, shape_of, value_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.kinds import BATCH_NORMS, CONVOLUTIONS, LINEARS, ROW_NORMS
from embedl_deploy.modules.linear_as_conv1x1 import LinearAsConv1x1
from embedl_deploy.passes.carried_values import op_name
from embedl_deploy.passes.points import is_weighted
from embedl_deploy.passes.qdq_walks import reached
from embedl_deploy.quantization.placement import NAMED_DECISIONS, Placement
from embedl_deploy.rewriting import PatternMatch

_NORMS = (*ROW_NORMS, *BATCH_NORMS, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)  # pyright: ignore[reportPrivateUsage]  # the base of three
RECURRENT_OPS = tuple(
    f"{op}{cell}" for op in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")
)
"""Ops that are a whole recurrent layer, or one step of it, with all its products."""

_OPS = {
    "add": "bare-add",
    "cat": "share-through-concat",
    "concat": "share-through-concat",
    "stack": "share-through-concat",
    "softmax": "softmax-input",
    "_softmax": "softmax-input",
    "log_softmax": "softmax-input",
    "layer_norm": "norm-input",
    "group_norm": "norm-input",
    "rms_norm": "norm-input",
    "batch_norm": "norm-input",
    "instance_norm": "norm-input",
    "embedding": "embedding",
    **dict.fromkeys(RECURRENT_OPS, "recurrent-layer"),
}


def layer_decisions(graph_module: GraphModule) -> dict[Node, tuple[str, ...]]:
    """Returns the names of the decisions about each layer with a weight, in graph order."""
    nodes: list[Node] = list(graph_module.graph.nodes)
    layers = {node: module for node in nodes if is_weighted(module := module_of(node))}
    behind = reached(nodes, set(layers), lambda node: node.all_input_nodes)
    before = reached(nodes[::-1], set(layers), lambda node: list(node.users))
    claims: tuple[tuple[str, Callable[[Node, nn.Module | None], bool]], ...] = (
        ("first-layer", lambda node, _: node not in behind),
        ("last-layer", lambda node, _: node not in before),
        ("depthwise-conv", _is_depthwise),
        ("head-1x1", _is_head),
        ("product-with-a-dimension-of-1", _has_a_dimension_of_1),
    )
    return {
        node: tuple(name for name, holds in claims if holds(node, module))
        for node, module in layers.items()
    }


def decision_notes(
    graph_module: GraphModule,
    layers: dict[Node, tuple[str, ...]],
    matches: Sequence[PatternMatch],
    placement: Placement,
) -> Iterator[str]:
    """Yields a sentence for each decision of the table that is about something in the graph.

    Args:
        graph_module: The graph.
        layers: What ``layer_decisions`` returned for it.
        matches: Of the quantized patterns.
        placement: The target's table.
    """
    counts = Counter(name for names in layers.values() for name in names)
    counts.update(match.pattern.name for match in matches)
    counts.update(name for node in graph_module.graph.nodes if (name := _decision_about(node)))
    for name, meaning in NAMED_DECISIONS.items():
        if counts[name] and name in placement.decisions:
            decision = placement.decision(name)
            where = " where another reader has them so" if decision.only_if_shared else ""
            what = f"in low precision{where}" if decision.quantized else "in float"
            yield f"{name} ({meaning}, {counts[name]} here): {what}, {decision.reason}"


def _decision_about(node: Node) -> str | None:
    module = module_of(node)
    if isinstance(module, _NORMS):
        return "norm-input"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)):
        return "softmax-input"
    name = _OPS.get(op_name(node))
    return name if name != "bare-add" or _adds_tensors(node) else None


def _adds_tensors(node: Node) -> bool:
    tensors = [
        value for read in node.all_input_nodes if isinstance(value := value_of(read), Tensor)
    ]
    return len(tensors) == 2 and all(tensor.is_floating_point() for tensor in tensors)


def _weighted(module: nn.Module | None) -> nn.Module | None:
    return module.weighted if isinstance(module, WeightedFused) else module


def _is_depthwise(_: Node, module: nn.Module | None) -> bool:
    conv = _weighted(module)
    return isinstance(conv, CONVOLUTIONS) and 1 < conv.groups == conv.in_channels


def _is_head(node: Node, module: nn.Module | None) -> bool:
    conv = _weighted(module)
    if isinstance(module, LinearAsConv1x1):
        return True
    if not isinstance(conv, CONVOLUTIONS) or any(size != 1 for size in conv.kernel_size):
        return False
    pixels = (shape_of(node) or ())[-len(conv.kernel_size) :]
    return all(isinstance(size, int) and size == 1 for size in pixels)


def _has_a_dimension_of_1(node: Node, module: nn.Module | None) -> bool:
    linear = _weighted(module)
    if not isinstance(linear, LINEARS):
        return False
    rows = (shape_of(node) or (0,))[:-1]
    is_one_row = all(isinstance(size, int) for size in rows) and math.prod(map(int, rows)) == 1
    return is_one_row or 1 in (linear.in_features, linear.out_features)
