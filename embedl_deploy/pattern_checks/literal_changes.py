"""Changes the literals of a graph one by one, each to a value that makes a difference."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node
from torch.fx.node import Argument

from embedl_deploy.graph.nodes import value_of
from embedl_deploy.graph.traced_module import TracedModule
from embedl_deploy.pattern_checks.sketch import infer_again, make_even
from embedl_deploy.rewriting.model_check import ModelCheck


@dataclass(frozen=True)
class ChangedLiteral:
    """A graph with one literal changed."""

    graph_module: TracedModule

    node: str
    """Name of the node that reads the literal."""

    before: Argument
    """The literal as it was."""


def changed_literals(base: TracedModule, names: Sequence[str]) -> Iterator[ChangedLiteral]:
    """Yields a graph for each literal of the nodes ``names`` that can be changed.

    A change that makes no difference to the outputs is none. Where the sizes of ``base`` admit no
    other value (no two dimensions of [2, 5, 7] may be swapped in a product), its inputs are made
    as wide as they are high.
    """
    grounds = [_Ground(base), *(_Ground(graph) for graph in _evened(base))]
    for name, position in _places(base, names):
        found = (changed for ground in grounds for changed in ground.changes(name, position))
        first = next(found, None)
        if first is not None:
            yield first


class _Ground:
    """A graph to change, and what it computes."""

    def __init__(self, graph_module: TracedModule) -> None:
        self.graph_module = graph_module
        self.check: ModelCheck | None = None

    def changes(self, name: str, position: int | str) -> Iterator[ChangedLiteral]:
        """Yields the graph with one literal changed, for each value with which it runs."""
        before = _read(_named(self.graph_module, name), position)
        for value in _other_values(before):
            graph_module = copy.deepcopy(self.graph_module)
            _write(_named(graph_module, name), position, value)
            if self._computes_something_else(graph_module):
                yield ChangedLiteral(graph_module, name, before)

    def _computes_something_else(self, graph_module: TracedModule) -> bool:
        try:
            infer_again(graph_module)
            ModelCheck(graph_module)
            self.check = self.check or ModelCheck(self.graph_module)
        except Exception:  # noqa: BLE001  # torch does not take the program with that value
            return False
        return not self.check.moved(graph_module, 0.0).error <= 0.0


def _places(graph_module: TracedModule, names: Sequence[str]) -> Iterator[tuple[str, int | str]]:
    for node in graph_module.graph.nodes:
        if node.name not in names or node.op != "call_function":
            continue
        arguments: list[tuple[int | str, Argument]] = [*enumerate(node.args), *node.kwargs.items()]
        for position, value in arguments:
            if next(_other_values(value), None) is not None:
                yield node.name, position


def _other_values(value: Argument) -> Iterator[Argument]:
    """Yields values of the same kind, nothing for what is no number and no list of integers."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, float):
        yield value * 2 + 1
    elif isinstance(value, int):
        others = (value * 2 + 1, value - 1, value + 1, 0, 1, 2, -1)
        yield from (other for other in dict.fromkeys(others) if other != value)
    elif isinstance(value, (list, tuple)):
        yield from _other_lists([item for item in value if isinstance(item, int)], len(value))


def _other_lists(numbers: list[int], length: int) -> Iterator[list[Argument]]:
    """Yields the list with neighbours swapped, then with one number changed."""
    if len(numbers) != length:
        return
    for place in range(length - 1):
        if numbers[place] != numbers[place + 1]:
            swapped = numbers[place : place + 2][::-1]
            yield [*numbers[:place], *swapped, *numbers[place + 2 :]]
    for place, number in enumerate(numbers):
        for other in _other_values(number):
            yield [*numbers[:place], other, *numbers[place + 1 :]]


def _evened(base: TracedModule) -> Iterator[TracedModule]:
    """Yields the graph with one size for all dimensions of its inputs, for each that it takes."""
    sizes = dict.fromkeys(
        size
        for node in base.graph.find_nodes(op="placeholder")
        for size in _static_sizes(node)
        if size > 1
    )
    for size in sizes:
        graph_module = copy.deepcopy(base)
        try:
            make_even(graph_module, size)
        except Exception:  # noqa: BLE001  # the model does not take inputs of that size
            continue
        yield graph_module


def _static_sizes(node: Node) -> list[int]:
    value = value_of(node)
    sizes = value.shape if isinstance(value, Tensor) else ()
    return [size for size in sizes if isinstance(size, int)]  # pyright: ignore[reportUnnecessaryIsInstance]  # may be symbolic


def _named(graph_module: TracedModule, name: str) -> Node:
    return next(node for node in graph_module.graph.nodes if node.name == name)


def _read(node: Node, position: int | str) -> Argument:
    return node.args[position] if isinstance(position, int) else node.kwargs[position]


def _write(node: Node, position: int | str, value: Argument) -> None:
    if isinstance(position, int):
        node.update_arg(position, value)
    else:
        node.update_kwarg(position, value)
