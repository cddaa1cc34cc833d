# pyright: reportPrivateUsage=false
# torch keeps schemas, code generators and the tables of a module private; there is no other door.
"""Reads off a graph how a weight is computed from parameters alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_map_only

from embedl_deploy.graph.computed_weight import Computation, Ref, Step
from embedl_deploy.tracing.program import State

_MOST_STEPS = 128


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that the graph computes from parameters, buffers and constants."""

    node: Node
    """The node that yields it."""

    state: tuple[str, ...]
    """The names of the tensors it is computed from."""

    nodes: tuple[Node, ...]
    """The calls that compute it, in graph order."""

    steps: tuple[Step, ...]
    """The same calls, still there when the nodes are gone."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for two computations that do the same with the same tensors."""
        return (self.state, tuple(str(step) for step in self.steps))

    def build(self, tensors: Mapping[str, Tensor]) -> Computation:
        """Returns the module that computes the weight from ``tensors``, by name."""
        return Computation([tensors[name] for name in self.state], self.steps)


def computed_weight(node: Node, state: Mapping[str, State]) -> ComputedWeight | None:
    """Returns how ``node`` is computed from parameters alone, None if an input has a part in it."""
    found: dict[Node, None] = {}
    read: dict[str, None] = {}
    pending = [node]
    while pending:
        at = pending.pop()
        if at.op == "get_attr" and str(at.target) in state:
            read[str(at.target)] = None
        elif at not in found and len(found) < _MOST_STEPS and _is_pure(at):
            found[at] = None
            pending.extend(at.all_input_nodes)
        elif at not in found:
            return None
    if not found or not any(isinstance(state[name].tensor, nn.Parameter) for name in read):
        return None
    names, nodes = tuple(sorted(read)), tuple(sorted(found))
    return ComputedWeight(node, names, nodes, _steps(names, nodes))


def _steps(names: tuple[str, ...], nodes: tuple[Node, ...]) -> tuple[Step, ...]:
    positions = {name: Ref(position) for position, name in enumerate(names)}
    made = {node: Ref(len(names) + index) for index, node in enumerate(nodes)}

    def ref(read: Node) -> Ref:
        return made[read] if read in made else positions[str(read.target)]

    steps: list[Step] = []
    for node in nodes:
        args, kwargs = tree_map_only(Node, ref, (node.args, dict(node.kwargs)))
        steps.append(Step(cast("Callable[..., object]", node.target), args, kwargs))
    return tuple(steps)


def _is_pure(node: Node) -> bool:
    if node.op != "call_function" or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
        return False
    if getattr(node.target, "__name__", "") == "getitem":
        return True
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
