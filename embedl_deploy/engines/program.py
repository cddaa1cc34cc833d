"""A module as one flat ATen graph of its own, which a compiler may rewrite."""

import inspect
from collections.abc import Mapping
from typing import cast

from torch import SymInt, Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from embedl_deploy.engines.call_form import (
    CallForm,
    call_form,
    has_upper_bound,
    leaf_form,
    size_bounds,
)
from embedl_deploy.engines.engine import Sample
from embedl_deploy.errors import BuildError, TracingError
from embedl_deploy.tracing.export import export_model

_ASSERTS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async")


def split_sample(sample: Sample) -> tuple[tuple[object, ...], dict[str, object]]:
    """Returns the positional and the keyword arguments of a sample."""
    if len(sample) == 2 and isinstance(sample[0], tuple) and isinstance(sample[1], dict):
        return cast("tuple[object, ...]", sample[0]), cast("dict[str, object]", sample[1])
    return sample, {}


def exported_program(
    module: nn.Module, sample: Sample, dynamic_shapes: object | None = None
) -> ExportedProgram:
    """Returns ``module`` exported; it is neither run nor changed.

    Args:
        module: What to export.
        sample: Example inputs.
        dynamic_shapes: As in ``torch.export``; None: as recorded in ``module``, if it is a graph.

    Raises:
        BuildError: The module cannot be exported.
    """
    args, kwargs = split_sample(sample)
    if dynamic_shapes is None and isinstance(module, GraphModule):
        dynamic_shapes = recorded_dynamic_shapes(module, sample)
    try:
        exported = export_model(module, module, args, kwargs, dynamic_shapes)
    except TracingError as error:
        raise BuildError(f"cannot export the module ahead of time: {error}") from error
    if exported.inputs is not None or exported.outputs is not None:
        raise BuildError(
            "cannot build ahead of time: inputs or outputs hold classes that torch's pytree does "
            "not know; register them, or lower the traced graph"
        )
    _admit_declared(exported.program)
    return exported.program


def flat_program(
    module: nn.Module, sample: Sample, dynamic_shapes: object | None = None
) -> GraphModule:
    """Returns ``module`` as a flat graph without assertions; every node has a recorded value.

    The parameters are the module's own, everything else is new. Arguments and errors are those
    of ``exported_program``.
    """
    return flat_graph(exported_program(module, sample, dynamic_shapes))


def flat_graph(program: ExportedProgram) -> GraphModule:
    """Returns the graph of an exported program, its parameters read where they are used."""
    return _without_asserts(_unlifted(program))


def recorded_dynamic_shapes(graph_module: GraphModule, sample: Sample) -> object | None:
    """Returns ``dynamic_shapes`` for calls like ``sample`` by the recorded sizes, None if fixed."""
    shapes = [
        _dynamic_sizes(node.meta.get("val"))
        for node in graph_module.graph.find_nodes(op="placeholder")
    ]
    if not any(shapes):
        return None
    leaves, structure = tree_flatten(split_sample(sample))
    if len(leaves) != len(shapes):
        raise BuildError(
            f"the graph takes {len(shapes)} inputs and the sample has {len(leaves)}: give the "
            "sample in the structure that the graph was traced with"
        )
    args, kwargs = cast(
        "tuple[tuple[object, ...], dict[str, object]]", tree_unflatten(shapes, structure)
    )
    if not kwargs:
        return args
    return dict(inspect.signature(graph_module.forward).bind(*args, **kwargs).arguments)


def has_dynamic_sizes(graph_module: GraphModule) -> bool:
    """Tells whether an input of the graph was recorded with a size that may change."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    return any(_dynamic_sizes(node.meta.get("val")) for node in placeholders)


def form_of(program: GraphModule, sample: Sample) -> CallForm:
    """Returns what calls of a flat program look like."""
    leaves, inputs = tree_flatten(split_sample(sample))
    recorded = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    forms = tuple(leaf_form(leaf, value) for leaf, value in zip(leaves, recorded, strict=True))
    outputs = cast("TreeSpec | None", getattr(program, "_out_spec", None))
    assert outputs is not None, "an exported program knows the structure of its outputs"
    return call_form(inputs, outputs, forms)


def _admit_declared(program: ExportedProgram) -> None:
    """Lets the recorded sizes be as small as declared: export assumes 2 or more as it traces."""
    for node in program.graph.find_nodes(op="placeholder"):
        value: object = node.meta.get("val")
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, SymInt):
                size.node.shape_env.var_to_range.update(program.range_constraints)
                return


def _unlifted(program: ExportedProgram) -> GraphModule:
    module = cast("object", program.module(check_guards=False))
    assert isinstance(module, GraphModule)
    return module


def _without_asserts(graph_module: GraphModule) -> GraphModule:
    graph = graph_module.graph
    for node in reversed(list(graph.nodes)):
        if not node.users and _is_assert(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _is_assert(node: Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return getattr(packet, "__name__", "") in _ASSERTS or str(node.target) == "_guards_fn"


def _dynamic_sizes(value: object) -> Mapping[int, object] | object | None:
    if isinstance(value, SymInt):
        return Dim.DYNAMIC
    if not isinstance(value, Tensor):
        return None
    found = {
        dimension: _dynamic(size)
        for dimension, size in enumerate(value.shape)
        if isinstance(size, SymInt)
    }
    return found or None


def _dynamic(size: SymInt) -> object:
    bounds = size_bounds(size)
    return Dim.DYNAMIC(min=bounds[0], max=bounds[1] if has_upper_bound(bounds) else None)
