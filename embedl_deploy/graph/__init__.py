"""Questions about an fx graph, and copies of one; nothing here rewrites."""

from embedl_deploy.graph.nodes import (
    bound_arguments,
    dtype_of,
    input_nodes,
    is_call,
    module_of,
    module_path,
    parts_of,
    shape_of,
    source_line,
    value_of,
)
from embedl_deploy.graph.provenance import blame
from embedl_deploy.graph.record import GraphRecord, has_record, record_of
from embedl_deploy.graph.structure import to_networkx
from embedl_deploy.graph.text import graph_text
from embedl_deploy.graph.traced_module import TracedModule, structural_copy
from embedl_deploy.graph.transposed_linear import TransposedLinear

__all__ = [
    "GraphRecord",
    "TracedModule",
    "TransposedLinear",
    "blame",
    "bound_arguments",
    "dtype_of",
    "graph_text",
    "has_record",
    "input_nodes",
    "is_call",
    "module_of",
    "module_path",
    "parts_of",
    "record_of",
    "shape_of",
    "source_line",
    "structural_copy",
    "to_networkx",
    "value_of",
]
