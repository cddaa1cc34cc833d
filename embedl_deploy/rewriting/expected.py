"""The graph that a module written by hand stands for, for comparison in tests."""

import operator

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Tracer

from embedl_deploy.graph.nodes import parts_of
from embedl_deploy.tracing import trace

_SPELLINGS: dict[object, object] = {
    operator.add: torch.ops.aten.add.Tensor,
    torch.add: torch.ops.aten.add.Tensor,
    operator.sub: torch.ops.aten.sub.Tensor,
    operator.mul: torch.ops.aten.mul.Tensor,
    operator.matmul: torch.ops.aten.matmul.default,
    torch.matmul: torch.ops.aten.matmul.default,
    torch.flatten: torch.ops.aten.flatten.using_ints,
}
"""How functions that a hand-written module calls are spelled after tracing."""


class _LeafTracer(Tracer):
    """Takes fused modules, and any module that is no container, as one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain = super().is_leaf_module(m, module_qualified_name)
        return plain or bool(parts_of(m)) or type(m).__module__.startswith("embedl_deploy.")


def expected_graph(module: nn.Module, args: tuple[object, ...]) -> GraphModule:
    """Returns the graph of ``module``, its fused modules as single nodes.

    Raises:
        ValueError: The module calls a function beside layers, adds and products; say what is
            expected as text instead.
    """
    if isinstance(module, GraphModule):
        return module
    if not any(_is_ours(child) for child in module.modules()):
        return trace(module, args)
    graph: Graph = _LeafTracer().trace(module)
    for node in graph.nodes:
        if node.op == "call_function":
            if node.target not in _SPELLINGS:
                raise ValueError(
                    f"the expected module calls {node.target}, whose traced spelling is not "
                    "known here: give expected= as the text of graph_text instead"
                )
            node.target = _SPELLINGS[node.target]
        if node.op == "output" and not isinstance(node.args[0], (tuple, list)):
            node.args = ((node.args[0],),)  # traced graphs return a tuple
    return GraphModule(module, graph)


def _is_ours(module: nn.Module) -> bool:
    return bool(parts_of(module)) or type(module).__module__.startswith("embedl_deploy.")
