"""Parts of a graph as graphs of their own."""

from collections.abc import Sequence

from torch.fx import Graph, GraphModule, Node

from embedl_deploy.graph.nodes import input_nodes
from embedl_deploy.graph.traced_module import TracedModule, copy_tree


def extract_subgraph(
    graph_module: GraphModule,
    nodes: Sequence[Node],
    *,
    outputs: Sequence[Node] | None = None,
    deferred: bool = False,
) -> TracedModule:
    """Returns ``nodes`` as a graph of their own, parameters and leaf modules shared.

    Args:
        graph_module: The graph they belong to.
        nodes: The nodes to take, in any order; reads of parameters among their inputs come along.
        outputs: What the subgraph returns, as a tuple in this order; those of ``nodes`` that are
            read from outside if None.
        deferred: Whether to put off writing Python code.

    Returns:
        A module whose inputs are the values that ``nodes`` read from outside, in the order they
        are first read; see ``subgraph_inputs``.
    """
    chosen = with_attributes(nodes)
    inside = set(chosen)
    graph = Graph()
    mapped: dict[Node, Node] = {}
    for read in subgraph_inputs(nodes):
        mapped[read] = graph.placeholder(read.name)
        mapped[read].meta = dict(read.meta)
    for node in chosen:
        mapped[node] = graph.node_copy(node, mapped.__getitem__)
    returned = list(outputs) if outputs is not None else subgraph_outputs(chosen, inside)
    graph.output(tuple(mapped[node] for node in returned))
    result = TracedModule(deferred=True)
    copy_tree(graph_module, result)
    result.shares_parameters = True
    result.graph = graph
    result.training = graph_module.training
    return result if deferred else result.finish()


def subgraph_inputs(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Returns the values that ``nodes`` read from outside, in the order they are first read."""
    inside = set(with_attributes(nodes))
    reads = (
        read
        for node in sorted(nodes)
        for read in (*input_nodes(node.args), *input_nodes(node.kwargs))
    )
    return tuple(dict.fromkeys(read for read in reads if read not in inside))


def subgraph_outputs(nodes: Sequence[Node], inside: set[Node]) -> list[Node]:
    """Returns those of ``nodes`` that are read from outside, in graph order."""
    return [node for node in sorted(nodes) if any(reader not in inside for reader in node.users)]


def with_attributes(nodes: Sequence[Node]) -> list[Node]:
    """Returns ``nodes`` and the reads of parameters and buffers among their inputs, in order."""
    reads = {read: None for node in nodes for read in node.all_input_nodes if read.op == "get_attr"}
    return sorted({**dict.fromkeys(nodes), **reads})
