"""A pass: one step over a graph, with what it requires and ensures."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from torch.fx import GraphModule

from embedl_deploy.errors import PassError
from embedl_deploy.rewriting.records import PassRecord


class Pass(ABC):
    """One step over a graph, which it changes in place."""

    name: str = "pass"
    """The name in reports."""

    def requires(self, graph_module: GraphModule) -> None:
        """Raises ``PreconditionError`` if the graph is not in the state the pass needs."""

    @abstractmethod
    def run(self, graph_module: GraphModule) -> PassRecord:
        """Changes the graph and returns what it did."""

    def ensures(self, graph_module: GraphModule) -> None:
        """Raises ``PassError`` if the graph is not in the state the pass promises."""


def run_passes(graph_module: GraphModule, passes: Sequence[Pass]) -> tuple[PassRecord, ...]:
    """Runs ``passes`` in order, checking what each requires and ensures.

    Raises:
        PreconditionError: A pass met a graph it cannot work on.
        PassError: A pass left a graph that is not well formed.
    """
    records: list[PassRecord] = []
    for step in passes:
        step.requires(graph_module)
        began = time.perf_counter()
        record = step.run(graph_module)
        try:
            graph_module.graph.lint()
        except Exception as error:  # lint raises bare RuntimeErrors and asserts
            raise PassError(f"pass {step.name!r} left a malformed graph: {error}") from error
        step.ensures(graph_module)
        records.append(replace(record, seconds=time.perf_counter() - began))
    return tuple(records)
