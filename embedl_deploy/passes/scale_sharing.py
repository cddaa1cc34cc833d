"""Lets ops that only carry values run on codes, by giving both of their ends one quantizer."""

from collections.abc import Iterator

from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.passes.carried_values import carrier_kind, shared_inputs
from embedl_deploy.quantization.placement import Placement
from embedl_deploy.quantization.stub import QuantStub


def share_scales(graph_module: GraphModule, placement: Placement) -> tuple[str, ...]:
    """Makes reshapes, max-pooling and concatenation between two quantizers run on codes.

    Where a tensor is quantized for one reader, and for another one again behind such an op, the
    op reads the quantized tensor and both quantizers become one: no float copy of the tensor is
    kept, and rounding the second time changes nothing. An op whose output something else reads
    in float keeps its float input. Changes the graph in place.

    Args:
        graph_module: A graph with quantizers that are not calibrated yet.
        placement: Its decisions ``share-through-reshape``, ``share-through-max-pool`` and
            ``share-through-concat`` are asked.

    Returns:
        A sentence for each op that was made to run on codes, and each that the table left alone.
    """
    sharing = _Sharing(graph_module, placement)
    notes = [note for stub in list(sharing.by_value.values()) for note in sharing.widen(stub)]
    sharing.drop_unused()
    return tuple(dict.fromkeys(notes))


def _is_static(module: nn.Module | None) -> bool:
    # A scale of the moment is that of the tensor as its reader sees it.
    return isinstance(module, QuantStub) and module.config.dynamic is None


class _Sharing:
    """The quantizers of a graph while they are merged."""

    def __init__(self, graph_module: GraphModule, placement: Placement) -> None:
        self.graph_module = graph_module
        self.placement = placement
        self.nodes = [node for node in graph_module.graph.nodes if _is_static(module_of(node))]
        self.by_value = {node.all_input_nodes[0]: node for node in self.nodes}
        self.paths = dict.fromkeys(str(node.target) for node in self.nodes)

    def widen(self, stub: Node) -> Iterator[str]:
        """Lets the quantizer ``stub`` reach up through the ops before it."""
        above = stub.all_input_nodes[0]
        reader = stub
        while list(above.users) == [reader] and (inputs := shared_inputs(above)):
            kind = carrier_kind(above)
            decision = self.placement.decision(f"share-through-{kind}")
            known = [self.by_value[source] for source in inputs if source in self.by_value]
            if known and not decision.quantized:
                yield f"%{above.name} keeps scales of its own on both ends: {decision.reason}"
                return
            if len(known) == len(inputs):
                self._merge(above, stub, known)
                yield f"%{above.name} runs on codes: %{stub.name} shares its scale with it"
                return
            if len(inputs) > 1:
                return
            above, reader = above.all_input_nodes[0], above

    def _merge(self, carrier: Node, stub: Node, known: list[Node]) -> None:
        for before in known:
            carrier.replace_input_with(before.all_input_nodes[0], before)
        kept = str(known[0].target)
        merged = {str(node.target) for node in (stub, *known)}
        for node in self.nodes:
            if str(node.target) in merged:
                node.target = kept

    def drop_unused(self) -> None:
        """Unregisters the quantizers that no node calls any more."""
        used = {str(node.target) for node in self.nodes}
        for path in self.paths:
            if path not in used:
                self.graph_module.delete_submodule(path)
