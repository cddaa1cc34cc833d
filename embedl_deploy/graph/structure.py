"""A graph as networkx sees it: for isomorphism, convexity and layout."""

from typing import TYPE_CHECKING

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from embedl_deploy.graph.nodes import input_nodes, module_of
from embedl_deploy.graph.text import label

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(graph_module: GraphModule) -> "nx.MultiDiGraph[str]":
    """Returns the graph with one vertex per node and one edge per use.

    A vertex carries ``label`` (what runs, without the node's own name or path) and ``literals``;
    an edge carries ``position``: which argument it feeds.
    """
    import networkx as nx  # only tests and pictures need it, and importing it takes a while

    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for node in graph_module.graph.nodes:
        graph.add_node(node.name, label=_structural_label(node), literals=_literals(node))
        arguments = [*enumerate(node.args), *node.kwargs.items()]
        for position, argument in arguments:
            for inner, read in enumerate(input_nodes(argument)):
                graph.add_edge(read.name, node.name, position=f"{position}.{inner}")
    return graph


def _structural_label(node: Node) -> str:
    if node.op in ("placeholder", "get_attr", "output"):
        return node.op
    module = module_of(node)
    if module is not None:
        return f"{type(module).__name__}({module.extra_repr()})"
    return label(node)


def _literals(node: Node) -> str:
    """Returns the arguments with every node blanked out, as text."""

    def blank(read: Node) -> str:
        del read
        return "%"

    return repr((map_arg(node.args, blank), map_arg(node.kwargs, blank)))
