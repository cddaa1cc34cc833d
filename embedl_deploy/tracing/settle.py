"""Puts numbers that turned out constant into the graph, and what follows from them."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node
from torch.fx.node import Argument, map_arg
from torch.utils._pytree import tree_leaves

from embedl_deploy.graph.values import infer_value

_ATEN = torch.ops.aten
_READS_DATA = (_ATEN.item.default, _ATEN._local_scalar_dense.default, _ATEN.nonzero.default)
Number = int | float | bool


def settle_numbers(graph: Graph, numbers: Mapping[Node, Number], resized: Iterable[Node]) -> None:
    """Replaces each node of ``numbers`` by its value wherever it is read.

    Sizes that were computed from them become known: recorded values are computed again
    downstream, and what turns out a number there is replaced as well.

    Args:
        graph: The graph to change.
        numbers: The nodes whose value is known.
        resized: Nodes whose recorded value was replaced by one of known sizes.
    """
    settled = dict(numbers)
    changed = dict.fromkeys(resized)
    if not settled and not changed:
        return
    for node in list(graph.nodes):
        is_new = any(read in settled or read in changed for read in node.all_input_nodes)
        if node in settled or not is_new:
            continue
        _put_numbers(node, settled)
        if node.op != "call_function" or node.target in _READS_DATA:
            continue
        value = infer_value(node)
        if isinstance(value, (int, float)):
            settled[node] = value
        elif _has_symbols(node.meta.get("val")):
            node.meta["val"] = value
            changed[node] = None


def recorded(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns what is recorded for ``tensor``, in the mode of the recorded value ``like``."""
    mode = detect_fake_mode(like)
    assert mode is not None
    return mode.from_tensor(tensor, static_shapes=True)


def _has_symbols(value: object) -> bool:
    sizes: list[object] = []
    for leaf in cast("list[object]", tree_leaves(value)):
        sizes.extend(leaf.shape if isinstance(leaf, Tensor) else [leaf])
    return not all(isinstance(size, int) for size in sizes)


def _put_numbers(node: Node, settled: dict[Node, Number]) -> None:
    def value(read: Node) -> Argument:
        return settled.get(read, read)

    node.args = map_arg(node.args, value)  # pyright: ignore[reportAttributeAccessIssue]  # a tuple stays a tuple
    node.kwargs = map_arg(node.kwargs, value)  # pyright: ignore[reportAttributeAccessIssue]  # a dict stays a dict
