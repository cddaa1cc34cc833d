import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph import (
    bound_arguments,
    dtype_of,
    input_nodes,
    is_call,
    module_of,
    module_path,
    parts_of,
    shape_of,
    source_line,
)
from embedl_deploy.graph.nodes import callee_of, module_at
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return torch.cat([y, y.flatten(0, 1).reshape(2, 4)], dim=1)


def traced() -> GraphModule:
    return trace(Model().eval(), (ROW,))


def node_of(graph_module: GraphModule, target: object) -> Node:
    (found,) = [node for node in graph_module.graph.nodes if node.target == target]
    return found


def test_answers_what_a_node_runs() -> None:
    graph_module = traced()
    linear, cat = node_of(graph_module, "block.0"), node_of(graph_module, aten.cat.default)

    assert module_of(linear) is graph_module.get_submodule("block.0")
    assert module_of(cat) is None
    assert is_call(linear, nn.Linear)
    assert is_call(linear, nn.Module)
    assert not is_call(linear, nn.Conv2d)
    assert is_call(cat, aten.cat)
    assert is_call(cat, aten.cat.default)
    assert not is_call(cat, aten.cat.out)
    assert callee_of(node_of(graph_module, "x")) is None


def test_a_missing_module_is_none() -> None:
    graph_module = traced()

    assert module_at(graph_module, "block.0") is not None
    assert module_at(graph_module, "block.7") is None
    assert module_at(graph_module, "block.7.conv") is None
    assert parts_of(nn.Linear(1, 1)) == ()


def test_reads_shape_dtype_and_place() -> None:
    linear = node_of(traced(), "block.0")

    assert shape_of(linear) == (2, 4)
    assert dtype_of(linear) is torch.float32
    assert module_path(linear) == "block.0"


def test_the_source_line_is_the_users() -> None:
    line = source_line(node_of(traced(), aten.cat.default))

    assert line is not None
    file, _, number = line.rpartition(":")
    assert file == __file__
    assert number == str(Model.forward.__code__.co_firstlineno + 2)


def test_code_that_torch_fx_wrote_is_no_source() -> None:
    linear = node_of(traced(), "block.0")
    linear.meta["stack_trace"] = (
        'File "model.py", line 7, in forward\n  x\nFile "<eval_with_key>.3", line 9, in forward\n'
    )

    assert source_line(linear) == "model.py:7"


def test_arguments_are_bound_by_their_schema_names() -> None:
    flatten = node_of(traced(), aten.flatten.using_ints)
    bound = bound_arguments(flatten)

    assert list(bound) == ["self", "start_dim", "end_dim"]
    assert (bound["start_dim"], bound["end_dim"]) == (0, 1)


def test_inputs_in_lists_and_slices_are_found() -> None:
    cat = node_of(traced(), aten.cat.default)
    first, second = cat.all_input_nodes

    assert list(input_nodes(cat.args)) == [first, second]
    assert list(input_nodes({"a": slice(first, None, second)})) == [first, second]
