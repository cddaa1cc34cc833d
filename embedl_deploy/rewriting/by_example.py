"""Trees written by example: trace a small function, get the tree that finds what it computes."""

import inspect
from collections.abc import Callable, Mapping
from typing import cast

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from embedl_deploy.errors import PatternError
from embedl_deploy.graph.nodes import input_nodes, module_of
from embedl_deploy.graph.text import graph_text, node_text
from embedl_deploy.rewriting.compose import Chain
from embedl_deploy.rewriting.tree import Exactly, Input, Literal, Named, Op, Spec, Tree
from embedl_deploy.tracing import trace


def example_tree(
    function: Callable[..., object] | nn.Module,
    *example: object,
    captures: Mapping[str, object] | None = None,
) -> Tree:
    """Returns the tree that finds what ``function`` computes.

    Inputs become ``Input()`` captured under the function's own parameter names; every call is
    captured under the name of its node. Literals must be equal,
    unless ``captures`` names them.

    Args:
        function: A function of tensors, or a module: its layers are found by their class, whatever
            their options.
        *example: Inputs to trace with; sizes do not matter for the tree.
        captures: Literals to capture, by name: each equal literal becomes ``Literal(name)``.

    Raises:
        PatternError: It returns more than one tensor, or an input itself.
    """
    model = function if isinstance(function, nn.Module) else _Traced(function)
    graph_module = trace(model.eval(), example)
    (output,) = graph_module.graph.find_nodes(op="output")
    roots = list(input_nodes(output.args))
    if len(roots) != 1 or not roots[0].op.startswith("call_"):
        raise PatternError(
            "an example must return the one tensor that the pattern replaces, got\n"
            + graph_text(graph_module)
        )
    names = _parameter_names(function, graph_module)
    return Chain(_Spelling(names, dict(captures or {})).tree_of(roots[0]))


class _Traced(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: object) -> object:
        return self.function(*args)


class _Spelling:
    def __init__(self, names: Mapping[str, str], captures: Mapping[str, object]) -> None:
        self.names = names
        self.captures = captures
        self.known: dict[Node, Tree] = {}

    def tree_of(self, node: Node) -> Tree:
        """Returns the tree of a node; the same one wherever the node is read."""
        if node not in self.known:
            self.known[node] = Named(self.names.get(node.name, node.name), self._spell(node))
        return self.known[node]

    def _spell(self, node: Node) -> Tree:
        if node.op in ("placeholder", "get_attr"):
            return Input()
        inputs = tuple(self._argument(value) for value in node.args)
        literals = {
            name: cast("object", value)
            for name, value in node.kwargs.items()
            if not isinstance(value, Node)
        }
        if len(literals) != len(node.kwargs):
            raise PatternError(f"the example reads a tensor by keyword: {node_text(node)}")
        module = module_of(node)
        target = type(module) if module is not None else node.target
        assert callable(target), "calls have a callable target"
        return Op(target, *inputs, literals=literals)

    def _argument(self, value: Argument) -> Spec:
        if isinstance(value, Node):
            return self.tree_of(value)
        if isinstance(value, (list, tuple)) and any(True for _ in input_nodes(value)):
            return [self._argument(item) for item in value]
        for name, captured in self.captures.items():
            if type(captured) is type(value) and captured == value:
                return Literal(name)
        return Exactly(list(value) if isinstance(value, (list, tuple)) else value)


def _parameter_names(
    function: Callable[..., object] | nn.Module, graph_module: GraphModule
) -> dict[str, str]:
    """Returns the function's parameter names by the names of the graph's inputs."""
    called = function.forward if isinstance(function, nn.Module) else function
    parameters = list(inspect.signature(called).parameters)
    inputs = [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]
    return dict(zip(inputs, parameters, strict=False))
