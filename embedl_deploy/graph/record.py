"""What a graph remembers about where it came from."""

from dataclasses import dataclass, field, replace

from torch.fx import GraphModule

_KEY = "embedl_deploy"


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
    record = graph_module.meta.get(_KEY)
    if not isinstance(record, GraphRecord):
        record = GraphRecord()
        graph_module.meta[_KEY] = record
    return record


def has_record(graph_module: GraphModule) -> bool:
    """Returns whether ``graph_module`` was made by this package's tracer."""
    return isinstance(graph_module.meta.get(_KEY), GraphRecord)
