"""Splits a traced graph into its signature and a flat core of tensors in, tensors out."""

# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument
from torch.utils import _pytree as pytree

from embedl_deploy.errors import LoweringError
from embedl_deploy.lowering.call_parameters import example_leaves, parameters_of
from embedl_deploy.lowering.expressions import symbols_in
from embedl_deploy.lowering.memory_format import format_of
from embedl_deploy.lowering.signature import (
    ConstantInput,
    ConstantOutput,
    InputLeaf,
    OutputLeaf,
    PassedInput,
    Result,
    Signature,
    SizeInput,
    SizeOutput,
    TensorInput,
)
from embedl_deploy.lowering.sizes import (
    constraints_of,
    recorded_ranges,
    size_of,
    symbol_ranges,
    symbol_sources,
)
from embedl_deploy.lowering.structure import (
    Structure,
    structure_of,
)
from embedl_deploy.tracing.structures import Template, pack

_CHECKS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
)
"""What tracing left to check inputs; the guards do that, and engines do not take it."""


@dataclass(frozen=True)
class CoreGraph:
    """A graph without nesting: tensors in, a tuple of tensors out."""

    module: GraphModule
    """Takes ``signature.arguments``, returns the tuple of results."""

    signature: Signature
    examples: tuple[object, ...]
    """The example arguments of ``module``."""

    template: Template | None = None
    """How outputs of classes that pytree does not know are rebuilt."""


def core_of(
    graph_module: GraphModule,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    python_signature: inspect.Signature | None = None,
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
) -> CoreGraph:
    """Returns the flat core of ``graph_module`` and the signature that surrounds it.

    Args:
        graph_module: A traced graph; parameters are shared, not copied.
        args: Example arguments.
        kwargs: Example keyword arguments.
        python_signature: Of the model's own ``forward``: parameter names, kinds and defaults.
        ranges: Smallest and largest value of symbols.

    Raises:
        LoweringError: The example arguments do not have the structure of the traced ones.
    """
    packed, _ = pack((tuple(args), dict(kwargs)))
    args, kwargs = cast("tuple[tuple[object, ...], dict[str, object]]", packed)
    parameters, output = parameters_of(graph_module, args, kwargs, python_signature)
    examples = example_leaves(parameters, args, kwargs)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(examples):
        raise LoweringError(
            f"the graph takes {len(placeholders)} values, the example arguments hold "
            f"{len(examples)}: pass arguments of the structure that the model was traced with"
        )
    inputs = tuple(
        _input_leaf(node, value, name)
        for node, (name, value) in zip(placeholders, examples, strict=True)
    )
    declared = {**recorded_ranges(placeholders), **(ranges or {})}
    symbols = symbol_ranges(inputs, [value for _, value in examples], declared)
    builder = _Builder(graph_module, placeholders, inputs, frozenset(symbols))
    outputs = builder.build()
    signature = Signature(
        parameters=parameters,
        inputs=inputs,
        arguments=tuple(builder.used),
        output=output if output is not None else _flat_output(builder.output_is_tuple, outputs),
        outputs=outputs,
        symbols=symbols,
        constraints=constraints_of(placeholders, symbols),
        symbol_sources=symbol_sources(inputs),
    )
    values = tuple(examples[index][1] for index in builder.used)
    template: object = getattr(graph_module.graph._codegen, "outputs", None)
    assert template is None or isinstance(template, Template)
    return CoreGraph(builder.module, signature, values, template)


def _flat_output(is_tuple: bool, outputs: Sequence[OutputLeaf]) -> Structure:
    spec = pytree.tree_structure(tuple(range(len(outputs))) if is_tuple else 0)
    return structure_of(spec)


def _input_leaf(node: Node, value: object, name: str) -> InputLeaf:
    recorded = node.meta.get("val")
    if isinstance(value, Tensor):
        shape = recorded.shape if isinstance(recorded, Tensor) else value.shape
        sizes = tuple(size_of(size) for size in shape)
        return TensorInput(
            name, value.dtype, value.device, sizes, format_of(value) or torch.contiguous_format
        )
    if isinstance(recorded, SymInt):
        size = size_of(recorded)
        if isinstance(size, str):
            return SizeInput(name, size)
    return ConstantInput(name, value)


class _Builder:
    """Copies the nodes that compute tensors into a graph of their own."""

    def __init__(
        self,
        source: GraphModule,
        placeholders: Sequence[Node],
        inputs: Sequence[InputLeaf],
        symbols: frozenset[str],
    ) -> None:
        self.source = source
        self.inputs = inputs
        self.symbols = symbols
        self.place = {node: index for index, node in enumerate(placeholders)}
        self.graph = Graph()
        self.mapped: dict[Node, Argument] = {}
        self.used: list[int] = []
        self.output_is_tuple = False
        self.module = source

    def build(self) -> tuple[OutputLeaf, ...]:
        outputs: tuple[OutputLeaf, ...] = ()
        needed = _needed(self.source.graph)
        for node in self.source.graph.nodes:
            if node.op == "placeholder":
                self._place(node, bool(node.users.keys() & needed))
            elif node.op == "output":
                outputs = self._outputs(node)
            elif node in needed:
                self.mapped[node] = self.graph.node_copy(node, self._argument)
        self.module = GraphModule(self.source, self.graph, "Core")
        self.module.meta = dict(self.source.meta)
        self.module.eval()
        return outputs

    def _place(self, node: Node, is_read: bool) -> None:
        index = self.place[node]
        leaf = self.inputs[index]
        if isinstance(leaf, ConstantInput):
            assert isinstance(leaf.value, (type(None), bool, int, float, str)) or not is_read
            self.mapped[node] = leaf.value  # type: ignore[assignment]
        elif is_read:
            self.mapped[node] = self.graph.node_copy(node)
            self.used.append(index)

    def _argument(self, node: Node) -> Argument:
        return self.mapped[node]

    def _outputs(self, node: Node) -> tuple[OutputLeaf, ...]:
        returned = node.args[0]
        self.output_is_tuple = isinstance(returned, (tuple, list))
        flat: Iterable[Argument] = returned if isinstance(returned, (tuple, list)) else (returned,)
        results: dict[Node, int] = {}
        leaves = tuple(self._output_leaf(value, results) for value in flat)
        self.graph.output(tuple(self.mapped[result] for result in results))
        return leaves

    def _output_leaf(self, value: Argument, results: dict[Node, int]) -> OutputLeaf:
        if not isinstance(value, Node):
            return ConstantOutput(value)
        if value.op == "placeholder":
            leaf = self.inputs[self.place[value]]
            if isinstance(leaf, ConstantInput):
                return ConstantOutput(leaf.value)
            return PassedInput(self.place[value])
        size = self._input_size(value)
        if size is not None:
            return size
        return Result(results.setdefault(value, len(results)))

    def _input_size(self, node: Node) -> OutputLeaf | None:
        """Returns the leaf for an integer that follows from the sizes of the inputs."""
        recorded = node.meta.get("val")
        if isinstance(recorded, (SymFloat, SymBool)) or not isinstance(recorded, SymInt):
            return None
        size = size_of(recorded)
        if isinstance(size, int):
            return ConstantOutput(size)
        known = all(symbol in self.symbols for symbol in symbols_in(size))
        return SizeOutput(size) if known else None


def _needed(graph: Graph) -> dict[Node, None]:
    """Returns the nodes that the output or a side effect needs, checks of inputs aside."""
    needed: dict[Node, None] = {}
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "output"):
            continue
        if _is_check(node):
            continue
        is_read = any(user.op == "output" or user in needed for user in node.users)
        if is_read or (node.op != "get_attr" and node.is_impure()):
            needed[node] = None
    return needed


def _is_check(node: Node) -> bool:
    return node.target in _CHECKS or (node.op == "call_module" and node.target == "_guards_fn")
