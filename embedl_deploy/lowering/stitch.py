"""Takes subgraphs out of a graph, and puts a graph of engine calls together again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from embedl_deploy.lowering.mutation import mutated_attributes
from embedl_deploy.lowering.partitioning import Partition, Subgraph
from embedl_deploy.lowering.units import is_size_arithmetic, is_step


@dataclass(frozen=True)
class Piece:
    """A subgraph as a module of its own."""

    subgraph: Subgraph
    module: GraphModule
    """Takes the values of ``inputs``, returns those of ``outputs`` as a tuple."""

    inputs: tuple[Node, ...]
    """The nodes of the whole graph whose values cross into the subgraph."""

    outputs: tuple[Node, ...]
    """The nodes of the subgraph that something outside it reads."""


def pieces_of(graph_module: GraphModule, partition: Partition) -> tuple[Piece, ...]:
    """Returns every subgraph of ``partition`` as a module; parameters are shared."""
    mutated = mutated_attributes(graph_module.graph.nodes)
    return tuple(
        _Extraction(graph_module, subgraph, mutated).piece() for subgraph in partition.subgraphs
    )


def boundary_values(
    graph_module: GraphModule, pieces: Iterable[Piece], examples: Sequence[object]
) -> dict[Node, object]:
    """Runs the graph once and returns what each piece reads and returns."""
    wanted = dict.fromkeys(node for piece in pieces for node in (*piece.inputs, *piece.outputs))
    recorder = _Recorder(graph_module, wanted)
    with torch.no_grad():
        recorder.run(*examples)
    return recorder.values


def stitch(
    graph_module: GraphModule, partition: Partition, calls: Mapping[str, tuple[Piece, nn.Module]]
) -> GraphModule:
    """Returns the graph with each subgraph replaced by one call.

    Args:
        graph_module: The whole graph.
        partition: How it was cut.
        calls: For each subgraph's name its piece and the module to call, which takes the
            piece's inputs and returns a sequence of its outputs.
    """
    graph = Graph()
    mapped: dict[Node, Node] = {}
    copier = _Copier(graph, mapped)
    for node in graph_module.graph.find_nodes(op="placeholder"):
        mapped[node] = graph.node_copy(node)
    for step in partition.steps:
        if isinstance(step, Node):
            copier.copy(step)
            continue
        piece, _ = calls[step.name]
        arguments = tuple(copier.get(node) for node in piece.inputs)
        call = graph.call_module(step.name, arguments)
        for position, node in enumerate(piece.outputs):
            item = graph.call_function(_getitem, (call, position))
            item.meta = dict(node.meta)
            mapped[node] = item
    copier.copy(graph_module.graph.output_node())
    return _with_calls(graph_module, graph, calls)


def _with_calls(
    graph_module: GraphModule, graph: Graph, calls: Mapping[str, tuple[Piece, nn.Module]]
) -> GraphModule:
    attributes: dict[str, object] = {name: call for name, (_, call) in calls.items()}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module") and str(node.target) not in attributes:
            attributes[str(node.target)] = attribute(graph_module, str(node.target))
    return GraphModule(attributes, graph, "Stitched")


def attribute(module: nn.Module, path: str) -> object:
    """Returns the parameter, buffer, module or value at ``path``."""
    value: object = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _getitem(values: Sequence[object], position: int) -> object:
    return values[position]


class _Copier:
    """Copies nodes into a graph, and with them whatever cheap values they read."""

    def __init__(self, graph: Graph, mapped: dict[Node, Node]) -> None:
        self.graph = graph
        self.mapped = mapped

    def get(self, node: Node) -> Node:
        """Returns the copy of ``node``, making it if it is an attribute or size arithmetic."""
        if node not in self.mapped:
            assert not is_step(node), f"%{node.name} is read before it runs"
            for read in _unmapped(node, self.mapped):
                self.copy(read)
        return self.mapped[node]

    def copy(self, node: Node) -> Node:
        copied = self.graph.node_copy(node, self.get)
        self.mapped[node] = copied
        return copied


def _unmapped(node: Node, mapped: Mapping[Node, Node]) -> list[Node]:
    """Returns ``node`` and the cheap nodes it rests on that have no copy yet, in order."""
    order: dict[Node, None] = {}
    stack = [(node, False)]
    while stack:
        here, is_ready = stack.pop()
        if is_ready:
            order[here] = None
        elif here not in mapped and here not in order:
            stack.append((here, True))
            stack.extend((read, False) for read in reversed(here.all_input_nodes))
    return list(order)


class _Extraction:
    """Builds the module of one subgraph."""

    def __init__(
        self, graph_module: GraphModule, subgraph: Subgraph, mutated: Mapping[str, None]
    ) -> None:
        self.source = graph_module
        self.subgraph = subgraph
        self.mutated = mutated
        self.inside = dict.fromkeys(subgraph.nodes)
        self.graph = Graph()
        self.mapped: dict[Node, Node] = {}
        self.inputs: list[Node] = []

    def piece(self) -> Piece:
        for node in self._crossing():
            placeholder = self.graph.placeholder(node.name)
            placeholder.meta = dict(node.meta)
            self.mapped[node] = placeholder
            self.inputs.append(node)
        copier = _Copier(self.graph, self.mapped)
        for node in self.subgraph.nodes:
            copier.copy(node)
        outputs = tuple(node for node in self.subgraph.nodes if self._is_read_outside(node))
        result = self.graph.output(tuple(self.mapped[node] for node in outputs))
        result.meta["val"] = tuple(node.meta.get("val") for node in outputs)
        module = GraphModule(self.source, self.graph, "Subgraph")
        module.meta = dict(self.source.meta)
        module.eval()
        return Piece(self.subgraph, module, tuple(self.inputs), outputs)

    def _crossing(self) -> Iterable[Node]:
        """Returns the nodes whose values come from outside, in order of first use."""
        found: dict[Node, None] = {}
        seen: set[Node] = set()
        stack = [read for node in reversed(self.subgraph.nodes) for read in _reads(node)]
        while stack:
            node = stack.pop()
            if node in self.inside or node in seen:
                continue
            seen.add(node)
            if is_size_arithmetic(node):
                stack.extend(_reads(node))
            elif node.op != "get_attr" or str(node.target) in self.mutated:
                found[node] = None
        return found

    def _is_read_outside(self, node: Node) -> bool:
        """Tells whether something outside reads ``node``, its sizes included."""
        stack = list(node.users)
        seen: set[Node] = set()
        while stack:
            user = stack.pop()
            if user in self.inside or user in seen:
                continue
            if not is_size_arithmetic(user):
                return True
            seen.add(user)
            stack.extend(user.users)
        return False


def _reads(node: Node) -> list[Node]:
    return list(reversed(node.all_input_nodes))


class _Recorder(Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph_module: GraphModule, wanted: Mapping[Node, None]) -> None:
        super().__init__(graph_module)
        self.wanted = wanted
        self.values: dict[Node, object] = {}

    def run_node(self, n: Node) -> object:
        result: object = super().run_node(n)
        if n in self.wanted:
            self.values[n] = _kept(result)
        return result


def _kept(value: object) -> object:
    """Returns what later in-place writes cannot reach."""
    return value.detach().clone() if isinstance(value, Tensor) else value
