"""What a graph remembers about where it came from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Signature
from typing import Protocol

from torch import Tensor
from torch.fx import GraphModule

RECORD = "embedl_deploy"
"""Where the record of a graph is kept in its ``meta``."""


@dataclass(frozen=True)
class LoadedState:
    """Weights of a rewritten graph, computed from weights of the model."""

    tensors: dict[str, Tensor]
    """By key of the rewritten graph."""

    missing: tuple[str, ...]
    """Keys of the model for which nothing was given."""


class StateLoader(Protocol):
    """Computes weights of a rewritten graph from those of the model it came from."""

    def keys(self) -> Iterable[str]:
        """Returns the keys of the model's ``state_dict``."""
        ...

    def __call__(self, state: Mapping[str, Tensor]) -> LoadedState:
        """Returns the rewritten graph's weights for ``state`` of the model."""
        ...


@dataclass
class GraphRecord:
    """What travels with a traced graph through every stage; deep copies with the graph."""

    backend: str | None = None
    """Name of the backend the graph was last rewritten for."""

    tracer: str = "export"
    """Which tracer made the graph: ``"export"`` or ``"fx"``."""

    range_constraints: dict[str, tuple[int, int | None]] = field(
        default_factory=dict[str, tuple[int, int | None]]
    )
    """Smallest and largest value of each symbolic size; ``None`` means without bound."""

    dynamic_shapes: object | None = None
    """The ``dynamic_shapes`` argument, as the user gave it."""

    key_map: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """From a key of the original ``state_dict`` to the keys that replaced it."""

    notes: list[str] = field(default_factory=list[str])
    """What the reader of a report should know, one sentence each."""

    report: object | None = None
    """The report of the last stage that ran."""

    example_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Shape of each tensor input at tracing, by placeholder name."""

    loader: StateLoader | None = None
    """Where a rewrite made or dropped parameters: how weights of the model become the graph's."""

    def __getstate__(self) -> dict[str, object]:
        # A loader holds the graph before the rewrite and the patterns: it stays in its process.
        return {**vars(self), "loader": None}

    signature: Signature | None = None
    """Names, kinds and defaults of what the model's own ``forward`` takes; None: not known."""

    def __copy__(self) -> "GraphRecord":
        """Returns a record that can be added to without changing this one."""
        return replace(
            self,
            range_constraints=dict(self.range_constraints),
            key_map=dict(self.key_map),
            notes=list(self.notes),
            example_shapes=dict(self.example_shapes),
        )


def record_of(graph_module: GraphModule) -> GraphRecord:
    """Returns the record of ``graph_module``, made and attached when there is none yet."""
    record = graph_module.meta.get(RECORD)
    if not isinstance(record, GraphRecord):
        record = GraphRecord()
        graph_module.meta[RECORD] = record
    return record


def has_record(graph_module: GraphModule) -> bool:
    """Returns whether ``graph_module`` was made by this package's tracer."""
    return isinstance(graph_module.meta.get(RECORD), GraphRecord)
