# pyright: reportPrivateUsage=false
# torch keeps the code generator of a graph private; there is no other door.
"""From the arguments of a call to the values that the placeholders of a graph take."""

import copy
from collections.abc import Mapping
from typing import cast

from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.graph import _PyTreeCodeGen


def flat_inputs(
    graph_module: GraphModule, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[object, ...]:
    """Returns one value per placeholder, as the graph's own code takes the arguments apart.

    What ``torch.fx.Interpreter`` wants with ``enable_io_processing=False``.
    """
    graph = Graph(tracer_cls=graph_module.graph._tracer_cls)
    taken = [graph.node_copy(node) for node in graph_module.graph.nodes if node.op == "placeholder"]
    graph.output(tuple(taken))
    codegen = copy.copy(graph_module.graph._codegen)
    if isinstance(codegen, _PyTreeCodeGen):
        codegen.pytree_info = codegen.pytree_info._replace(out_spec=None)
        if hasattr(codegen, "outputs"):
            setattr(codegen, "outputs", None)  # noqa: B010  # that of our own code generator
    graph.set_codegen(codegen)
    return cast("tuple[object, ...]", tuple(GraphModule(nn.Module(), graph)(*args, **kwargs)))
