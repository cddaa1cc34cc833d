"""The graph that a module written by hand stands for, for comparison in tests."""

import operator
import re
from itertools import zip_longest

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Tracer
from torch.fx.proxy import TraceError

from embedl_deploy.graph.nodes import module_of, parts_of
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


_NAME = re.compile(r"%\w+|(?<=\)\[)[\w.]+(?=\]\()")
"""A node's name, or the path of the module that it calls."""


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
    return _spelled(module, graph)


def leaf_graph(module: nn.Module, like: GraphModule) -> GraphModule | None:
    """Returns the graph of ``module`` with its layers as single nodes, None where there is none.

    Tracing takes some layers of torch.nn apart, such as ``nn.PixelUnshuffle``, and a pattern may
    put one in. So this is what to compare with where ``like`` calls one that tracing takes apart.
    """
    called = {type(made) for node in like.graph.nodes if (made := module_of(node)) is not None}
    if isinstance(module, GraphModule) or not any(type(m) in called for m in module.modules()):
        return None
    try:
        return _spelled(module, _LeafTracer().trace(module))
    except (TraceError, TypeError, ValueError):
        return None


def first_difference(got: str, expected: str) -> str | None:
    """Returns the first line in which two printed graphs differ but for names, None if none."""
    printed = [[line.strip() for line in text.strip().splitlines()] for text in (got, expected)]
    plain = [_without_names(lines) for lines in printed]
    for number, (one, other) in enumerate(zip_longest(*plain)):
        if one != other:
            lines = [text[number] if number < len(text) else "nothing" for text in printed]
            return f"line {number + 1} is {lines[0]!r}, expected {lines[1]!r}"
    return None


def _without_names(lines: list[str]) -> list[str]:
    """Returns printed lines with the names of nodes and modules numbered as they come."""
    numbers: dict[str, str] = {}
    return [
        _NAME.sub(lambda name: numbers.setdefault(name[0], f"%{len(numbers)}"), line)
        for line in lines
    ]


def _spelled(module: nn.Module, graph: Graph) -> GraphModule:
    """Returns what ``torch.fx`` traced, spelled as traced graphs are."""
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
