"""Which engines may take which nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch.fx import GraphModule, Node

from embedl_deploy.engines.engine import Engine
from embedl_deploy.graph.nodes import module_path, source_line
from embedl_deploy.graph.text import label as operation_text
from embedl_deploy.lowering.build_errors import BUILD_ERRORS
from embedl_deploy.lowering.engine_choice import EngineChoice, engine_from
from embedl_deploy.lowering.report import NodeRefusal
from embedl_deploy.lowering.units import is_step


@dataclass(frozen=True)
class Candidates:
    """The engines by label, and what each said about every node."""

    engines: Mapping[str, Engine]
    """In order of preference; prototypes, never built themselves."""

    takers: Mapping[Node, Sequence[str]]
    refusals: tuple[NodeRefusal, ...]
    idle_pins: tuple[str, ...] = ()
    """Patterns of module paths that no node was made under."""


@dataclass(frozen=True)
class Assignment:
    """Which engine takes each node, as an earlier lowering of the same graph settled it."""

    engines: Mapping[str, Engine]
    """By label."""

    labels: tuple[str, ...]
    """The label of each step of the graph, in graph order; "" for eager."""


def assigned(graph_module: GraphModule, assignment: Assignment) -> Candidates | None:
    """Returns candidates that leave no choice; None if the graph has other steps."""
    steps = [node for node in graph_module.graph.nodes if is_step(node)]
    if len(steps) != len(assignment.labels):
        return None
    pairs = zip(steps, assignment.labels, strict=True)
    return Candidates(
        assignment.engines, {node: [label] if label else [] for node, label in pairs}, ()
    )


def by_contestants(takers: Mapping[Node, Sequence[str]]) -> dict[Node, list[str]]:
    """Returns one label per set of engines, so that cuts fall where the contestants change.

    A node's own set comes first, then the smaller ones that a neighbour may draw it into.
    """
    sets = {tuple(taken): "|".join(taken) for taken in takers.values() if taken}
    inside = {
        taken: [
            label
            for other, label in sorted(sets.items(), key=lambda item: -len(item[0]))
            if set(other) <= set(taken)
        ]
        for taken in sets
    }
    return {node: inside.get(tuple(taken), []) for node, taken in takers.items()}


def candidates_of(
    graph_module: GraphModule,
    engines: Sequence[EngineChoice],
    pins: Mapping[str, EngineChoice],
) -> Candidates:
    """Asks every engine about every node.

    Args:
        graph_module: A flat graph.
        engines: In order of preference.
        pins: From a pattern of module paths (``"encoder.*"``) to the engine for the nodes made
            there; that engine or eager. The first pattern that matches counts.

    Raises:
        ValueError: A name is no engine's, or an object is none.
    """
    prototypes: dict[str, Engine] = {}
    order = [_labelled(engine_from(choice), prototypes) for choice in engines]
    pinned = {
        pattern: _labelled(engine_from(choice), prototypes) for pattern, choice in pins.items()
    }
    takers: dict[Node, Sequence[str]] = {}
    refusals: list[NodeRefusal] = []
    used: set[str] = set()
    for node in graph_module.graph.nodes:
        if not is_step(node):
            continue
        pattern = _pattern_of(node, pinned) if pinned else None
        if pattern is not None:
            used.add(pattern)
        taken: list[str] = []
        for name in order if pattern is None else [pinned[pattern]]:
            refusal = prototypes[name].supports(node)
            if refusal is None:
                taken.append(name)
            else:
                refusals.append(_node_refusal(name, node, refusal.reason))
        takers[node] = taken
    idle = tuple(pattern for pattern in pinned if pattern not in used)
    return Candidates(prototypes, takers, tuple(refusals), idle)


def _labelled(engine: Engine, prototypes: dict[str, Engine]) -> str:
    """Files ``engine`` under a label of its own, or finds the equal one that is there."""
    name, count = engine.name, 1
    label = name
    while label in prototypes:
        if _is_equal(prototypes[label], engine):
            return label
        count += 1
        label = f"{name}-{count}"
    prototypes[label] = engine
    return label


def _is_equal(one: Engine, other: Engine) -> bool:
    """Tells whether two engines are set alike; settings without a form as data are compared."""
    try:
        return one.key() == other.key()
    except BUILD_ERRORS:
        return type(one) is type(other) and one.config == other.config


def _pattern_of(node: Node, pinned: Mapping[str, str]) -> str | None:
    path = module_path(node)
    for pattern in pinned:
        if fnmatchcase(path, pattern) or path == pattern.removesuffix(".*"):
            return pattern
    return None


def _node_refusal(engine: str, node: Node, reason: str) -> NodeRefusal:
    return NodeRefusal(engine, node.name, operation_text(node), reason, source_line(node))
