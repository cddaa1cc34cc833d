"""Lowers a graph that was read from a file, without the engines in it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch.export import Dim
from torch.fx import GraphModule

from embedl_deploy.engines.engine import Engine
from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.assembly import Assembly
from embedl_deploy.lowering.candidates import Assignment
from embedl_deploy.lowering.core_graph import CoreGraph
from embedl_deploy.lowering.expressions import evaluate
from embedl_deploy.lowering.lowered_module import LoweredModule
from embedl_deploy.lowering.piece_spec import declared_size, dim_of
from embedl_deploy.lowering.signature import Result, Signature, SizeInput, TensorInput
from embedl_deploy.lowering.units import is_step

Lower = Callable[[GraphModule, tuple[object, ...], object], LoweredModule]
"""Traces and lowers (graph, example arguments, dynamic_shapes)."""


def rebuild(core: CoreGraph, lower: Lower) -> LoweredModule:
    """Returns a lowered model with the signature of ``core``, its engines built anew.

    Raises:
        CheckpointError: The saved graph and its signature do not belong together.
    """
    signature = core.signature
    examples = example_arguments(signature)
    inner = lower(core.module, examples, _dynamic_shapes(signature))
    assembly = inner.assembly
    flat = assembly.core.signature
    results = [output.index for output in signature.outputs if isinstance(output, Result)]
    whole = flat.arguments == tuple(range(len(examples))) and flat.outputs == tuple(
        Result(index) for index in range(len(set(results)))
    )
    if not whole:
        raise CheckpointError("the saved graph no longer computes what its signature promises")
    outer = replace(core, module=assembly.core.module, examples=assembly.core.examples)
    return LoweredModule(replace(assembly, core=outer), inner.report, inner.terms)


def assignment_of(
    assembly: Assembly, engines: Mapping[str, Engine], labels: Mapping[str, str]
) -> Assignment:
    """Returns which engine takes each step of a loaded graph, from the label of each subgraph."""
    label_of = {
        node: labels.get(subgraph.name, "")
        for subgraph in assembly.partition.subgraphs
        for node in subgraph.nodes
    }
    steps = [node for node in assembly.core.module.graph.nodes if is_step(node)]
    return Assignment(engines, tuple(label_of.get(node, "") for node in steps))


def example_arguments(signature: Signature) -> tuple[object, ...]:
    """Returns arguments of the graph with the sizes that the example inputs had.

    Floats are standard normal, integers 0 (an index that every table has), booleans True.
    """
    sizes = {name: known.example for name, known in signature.symbols.items()}
    generator = torch.Generator().manual_seed(0)
    return tuple(
        _example(signature.inputs[index], sizes, generator) for index in signature.arguments
    )


def _example(leaf: object, sizes: Mapping[str, int], generator: torch.Generator) -> object:
    if isinstance(leaf, SizeInput):
        return int(evaluate(leaf.size, sizes))
    assert isinstance(leaf, TensorInput)
    shape = [size if isinstance(size, int) else int(evaluate(size, sizes)) for size in leaf.shape]
    if leaf.dtype.is_floating_point:
        value = torch.randn(shape, generator=generator).to(leaf.dtype)
    elif leaf.dtype is torch.bool:
        value = torch.ones(shape, dtype=leaf.dtype)
    else:
        value = torch.zeros(shape, dtype=leaf.dtype)
    if leaf.memory_format is not torch.contiguous_format:
        value = value.contiguous(memory_format=leaf.memory_format)
    return value.to(leaf.device)


def _dynamic_shapes(signature: Signature) -> tuple[object, ...] | None:
    """Returns ``dynamic_shapes`` for the graph's arguments; None if every size is fixed."""
    if not signature.symbols:
        return None
    dims = {name: dim_of(name, known) for name, known in signature.symbols.items()}
    return tuple(_declared(signature.inputs[index], dims) for index in signature.arguments)


def _declared(leaf: object, dims: Mapping[str, Dim]) -> object:
    if isinstance(leaf, SizeInput):
        return Dim.DYNAMIC
    assert isinstance(leaf, TensorInput)
    sizes = {d: declared_size(size, dims) for d, size in enumerate(leaf.shape)}
    return {d: size for d, size in sizes.items() if size is not None}
