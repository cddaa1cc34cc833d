# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Helpers for the authors of patterns: check a rewrite, check a refusal, compare graphs."""

import copy
from collections.abc import Mapping
from typing import cast

import networkx as nx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.record import has_record
from embedl_deploy.graph.structure import to_networkx
from embedl_deploy.graph.text import graph_text
from embedl_deploy.pattern_checks import PatternCheck, check_pattern
from embedl_deploy.pattern_checks.random_values import randomize
from embedl_deploy.rewriting import PassRecord, Pattern, apply_patterns
from embedl_deploy.rewriting.expected import expected_graph, first_difference, leaf_graph
from embedl_deploy.rewriting.explain import explain_graph
from embedl_deploy.rewriting.verify import Verifier
from embedl_deploy.tracing import trace

__all__ = [
    "PatternCheck",
    "assert_same_graph",
    "check_pattern",
    "check_refusal",
    "check_rewrite",
    "graph_text",
    "randomize",
]

Example = Tensor | tuple[object, ...]
"""One tensor, or a tuple of positional inputs."""


def check_rewrite(
    pattern: Pattern | type[Pattern],
    before: nn.Module,
    expected: nn.Module | str,
    example: Example,
    *,
    kwargs: Mapping[str, object] | None = None,
    relative: float = 1e-5,
    count: int | None = None,
) -> GraphModule:
    """Asserts that ``pattern`` turns ``before`` into ``expected`` and keeps its outputs.

    Every float parameter and buffer of a copy of ``before`` is first filled with random numbers
    from [0.5, 1.5): fresh layers (a new batch norm is the identity) hide mistakes. Beyond
    structure and outputs it asserts that every match passes its own check on random inputs, that
    every new node carries a recorded value and the rewrite that made it, that a second run finds
    nothing more to rewrite, and that the model itself was left as it was.

    Args:
        pattern: The rule.
        before: The model; its training flags are used as they are.
        expected: A module with the structure that must come out (fused modules and layers of
            torch.nn are leaves), or the text that ``graph_text`` must give; names do not matter.
        example: Inputs of ``before``.
        kwargs: Keyword inputs of ``before``.
        relative: Largest allowed error of the outputs, relative to their norm.
        count: How many sites must be rewritten; at least one if None.

    Returns:
        The rewritten graph, for further assertions.

    Raises:
        ValueError: ``before`` is no module, or ``expected`` neither a module nor a text.
        AssertionError: Any of this does not hold; the message holds the printed graph.
    """
    _require_module("before", before)
    if not isinstance(expected, str):
        _require_module("expected", expected, or_else=", or the text that graph_text must give")
    args = _as_args(example)
    model = randomize(copy.deepcopy(before))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = model(*args, **(kwargs or {}))
    graph_module = trace(model, args, kwargs)
    untouched = copy.deepcopy(graph_module)
    record = apply_patterns(graph_module, [pattern], verify=Verifier())
    graph_module.recompile()
    _assert_applied(graph_module, record, count, before=untouched, pattern=pattern)
    _assert_close(graph_module, graph_module(*args, **(kwargs or {})), wanted, relative)
    _assert_expected(graph_module, expected, args)
    _assert_metadata(graph_module)
    _assert_unchanged(model, state)
    again = apply_patterns(graph_module, [pattern])
    if again.applied:
        raise AssertionError(f"the pattern rewrites its own result: {again.applied[0]}")
    return graph_module


def check_refusal(
    pattern: Pattern | type[Pattern],
    before: nn.Module,
    because: str,
    example: Example | None = None,
    *,
    kwargs: Mapping[str, object] | None = None,
) -> None:
    """Asserts that ``pattern`` fits somewhere in ``before``, declines, and says ``because``.

    Args:
        pattern: The rule.
        before: The model.
        because: A part of the reason.
        example: Inputs of ``before``; if None, random ones that fit its first layer.
        kwargs: Keyword inputs of ``before``.

    Raises:
        AssertionError: The pattern rewrote something, refused nothing, or for another reason.
    """
    _require_module("before", before)
    args = _as_args(_example_for(before) if example is None else example)
    graph_module = trace(before, args, kwargs)
    text = graph_text(graph_module)
    record = apply_patterns(graph_module, [pattern])
    if record.applied:
        raise AssertionError(f"the pattern rewrote it: {record.applied[0]}\n{text}")
    if not record.refused:
        raise AssertionError(
            f"the pattern's tree fits nowhere, so nothing was refused by {pattern.name}:\n"
            f"{explain_graph(graph_module, pattern)}\n{text}"
        )
    if not any(because in (site.reason or "") for site in record.refused):
        reasons = "\n".join(str(site) for site in record.refused)
        raise AssertionError(f"no refusal says {because!r}:\n{reasons}\n{text}")


def assert_same_graph(first: GraphModule, second: GraphModule) -> None:
    """Asserts that two graphs have the same structure: operations, literals and wiring.

    Names of nodes and modules and values of parameters do not matter.

    Raises:
        AssertionError: They differ; the message holds both printed graphs.
    """
    if not _is_same_graph(first, second):
        raise AssertionError(
            f"the graphs differ. Got:\n{graph_text(first)}\n\nexpected:\n{graph_text(second)}"
        )


def _require_module(argument: str, given: object, or_else: str = "") -> None:
    if not isinstance(given, nn.Module):
        raise ValueError(
            f"{argument} is a module{or_else}; got {given!r} of {type(given).__name__}"
        )


def _is_same_graph(first: GraphModule, second: GraphModule) -> bool:
    return nx.is_isomorphic(
        to_networkx(first),
        to_networkx(second),
        node_match=_equal,
        edge_match=_same_positions,
    )


def _as_args(example: Example) -> tuple[object, ...]:
    if isinstance(cast("object", example), (list, dict)):
        raise ValueError(
            f"example is a tensor or a tuple of inputs, got {type(example).__name__}: write "
            "(first, second), and inputs by keyword as kwargs={…}"
        )
    return example if isinstance(example, tuple) else (example,)


def _equal(first: object, second: object) -> bool:
    return first == second


def _same_positions(first: dict[int, object], second: dict[int, object]) -> bool:
    positions = [
        sorted(str(cast("dict[str, object]", edge)["position"]) for edge in edges.values())
        for edges in (first, second)
    ]
    return positions[0] == positions[1]


def _assert_applied(
    graph_module: GraphModule,
    record: PassRecord,
    count: int | None,
    *,
    before: GraphModule,
    pattern: Pattern | type[Pattern],
) -> None:
    enough = len(record.applied) == count if count is not None else bool(record.applied)
    moved = [site for site in record.refused if (site.reason or "").startswith("rolled back")]
    if enough and not moved:
        return
    wanted = "at least once" if count is None else f"{count} times"
    reasons = "\n".join(str(site) for site in record.refused)
    nearest = f"no refusal was recorded\n{explain_graph(before, pattern)}"
    raise AssertionError(
        f"the pattern {pattern.name} must apply {wanted}, it applied {len(record.applied)} times; "
        f"{reasons or nearest}\n{graph_text(graph_module)}"
    )


def _assert_close(graph_module: GraphModule, got: object, wanted: object, allowed: float) -> None:
    error = relative_error(got, wanted)
    if not error <= allowed:
        raise AssertionError(
            f"output moved by {error:.1e}, allowed {allowed:.1e}\n{graph_text(graph_module)}"
        )


def _assert_expected(
    graph_module: GraphModule, expected: nn.Module | str, args: tuple[object, ...]
) -> None:
    if isinstance(expected, str):
        _assert_text(graph_module, expected)
        return
    as_leaves = leaf_graph(expected, graph_module)
    if as_leaves is None or not _is_same_graph(graph_module, as_leaves):
        assert_same_graph(graph_module, expected_graph(expected, args))


def _assert_text(graph_module: GraphModule, expected: str) -> None:
    got = graph_text(graph_module)
    difference = first_difference(got, expected)
    if difference is not None:
        raise AssertionError(
            f"the printed graphs differ: {difference}. Got:\n{got}\n\nexpected:\n{expected}"
        )


def _assert_metadata(graph_module: GraphModule) -> None:
    for node in graph_module.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            raise AssertionError(f"%{node.name} carries no recorded value")


def _assert_unchanged(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, state[name]):
            raise AssertionError(f"the rewrite changed {name} of the user's model")


def _example_for(model: nn.Module) -> Tensor:
    """Returns random input for the first layer with parameters."""
    if isinstance(model, GraphModule) and has_record(model):
        raise ValueError("check_refusal needs example= for a traced graph")
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            sizes = (2, module.in_channels, *[16] * len(module.kernel_size))
            return torch.randn(sizes, generator=generator)
        if isinstance(module, nn.Linear):
            return torch.randn(2, 5, module.in_features, generator=generator)
    raise ValueError(
        "check_refusal cannot guess inputs for this model (its first layer is no convolution "
        "and no linear layer): give example="
    )
