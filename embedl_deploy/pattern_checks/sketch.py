"""A small graph that is built node by node, with recorded values, as tracing would leave it."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
    SymbolicContext,
)
from torch.fx.node import Argument

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.traced_module import TracedModule
from embedl_deploy.graph.values import infer_value


class Sketch:
    """A graph under construction."""

    def __init__(self) -> None:
        self.graph_module = TracedModule(deferred=True)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
        self.count = 0

    def input(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Node:
        """Adds an input."""
        node = self.graph_module.graph.placeholder(f"input_{self._number()}")
        # Inputs stand before all calls, as in every traced graph.
        others = [other for other in self.graph_module.graph.nodes if other is not node]
        first = next((other for other in others if other.op != "placeholder"), None)
        if first is not None:
            first.prepend(node)
        node.meta["val"] = self.mode.from_tensor(
            torch.empty(shape, dtype=dtype), static_shapes=True
        )
        return node

    def call_module(self, module: nn.Module, *args: Argument) -> Node:
        """Adds a call of a module under a name of its own."""
        name = f"{type(module).__name__.lower()}_{self._number()}"
        self.graph_module.add_module(name, module)
        return self._filled(self.graph_module.graph.call_module(name, args))

    def call_function(
        self, target: object, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> Node:
        """Adds a call of an ATen op or a function."""
        assert callable(target), "trees name callables"
        return self._filled(self.graph_module.graph.call_function(target, args, kwargs))

    def finish(self, *outputs: Node) -> TracedModule:
        """Ends the graph."""
        self.graph_module.graph.output(tuple(outputs))
        self.graph_module.eval()
        return self.graph_module

    def _filled(self, node: Node) -> Node:
        try:
            node.meta["val"] = infer_value(node)
        except Exception:
            self.graph_module.graph.erase_node(node)
            raise
        node.meta["stack_trace"] = f'File "generated.py", line {self._number()}, in forward'
        return node

    def _number(self) -> int:
        self.count += 1
        return self.count


def infer_again(graph_module: TracedModule) -> None:
    """Computes the recorded value of every call anew, after inputs or arguments changed."""
    for node in graph_module.graph.nodes:
        if node.op.startswith("call_"):
            node.meta["val"] = infer_value(node)


def make_batch_dynamic(graph_module: TracedModule) -> None:
    """Gives the first dimension of every input one symbol per size."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    _read_in(mode, graph_module)
    for node in graph_module.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta["val"]
        kinds = [DimDynamic.STATIC] * value.dim()
        if value.dim() > 1:
            kinds[0] = DimDynamic.DUCK
        context = cast("SymbolicContext", StatelessSymbolicContext(dynamic_sizes=kinds))
        fresh = torch.empty(value.shape, dtype=value.dtype)
        node.meta["val"] = mode.from_tensor(fresh, symbolic_context=context)
    infer_again(graph_module)


def cast_inputs(graph_module: TracedModule, dtype: torch.dtype) -> None:
    """Changes the dtype of the floating inputs and of all parameters."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    graph_module.to(dtype)
    _read_in(mode, graph_module)
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            chosen = dtype if value.dtype.is_floating_point else value.dtype
            fresh = torch.empty(value.shape, dtype=chosen)
            node.meta["val"] = mode.from_tensor(fresh, static_shapes=True)
        module = module_of(node)
        if module is not None:
            module.to(dtype)
    infer_again(graph_module)


def make_even(graph_module: TracedModule, size: int) -> None:
    """Gives every dimension of every input the same size."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    _read_in(mode, graph_module)
    for node in graph_module.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        fresh = torch.empty([size] * value.dim(), dtype=value.dtype)
        node.meta["val"] = mode.from_tensor(fresh, static_shapes=True)
    infer_again(graph_module)


def _read_in(mode: FakeTensorMode, graph_module: TracedModule) -> None:
    """Records what the graph reads of itself in ``mode``: values of two modes do not mix."""
    for node in graph_module.graph.find_nodes(op="get_attr"):
        value = attribute_of(graph_module, str(node.target))
        if isinstance(value, Tensor):
            node.meta["val"] = mode.from_tensor(value, static_shapes=True)
