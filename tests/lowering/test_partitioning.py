import operator
from collections.abc import Sequence

import pytest
import torch
from torch.fx import Graph, Node

from embedl_deploy.lowering.partitioning import Subgraph, partition, without

aten = torch.ops.aten


def takers_of(graph: Graph, **by_engine: Sequence[str]) -> dict[Node, list[str]]:
    """Which engines take each node, by node name."""
    return {
        node: [engine for engine, names in by_engine.items() if node.name in names]
        for node in graph.nodes
    }


def names(steps: Sequence[Node | Subgraph]) -> list[object]:
    return [
        (step.engine, [node.name for node in step.nodes])
        if isinstance(step, Subgraph)
        else step.name
        for step in steps
    ]


def chain(*targets: object) -> Graph:
    """A graph of one operation after the other."""
    graph = Graph()
    value = graph.placeholder("x")
    for target in targets:
        value = graph.call_function(target, (value,))  # type: ignore[arg-type]
    graph.output((value,))
    return graph


def test_a_run_of_supported_nodes_is_one_subgraph() -> None:
    graph = chain(aten.relu.default, aten.sin.default, aten.cos.default)

    result = partition(graph, takers_of(graph, a=["relu_default", "sin_default", "cos_default"]))

    assert names(result.steps) == [("a", ["relu_default", "sin_default", "cos_default"])]


def test_what_nobody_takes_runs_eager_in_between() -> None:
    graph = chain(aten.relu.default, aten.sin.default, aten.cos.default)

    result = partition(graph, takers_of(graph, a=["relu_default", "cos_default"]))

    assert names(result.steps) == [("a", ["relu_default"]), "sin_default", ("a", ["cos_default"])]


def test_a_skip_connection_over_an_eager_node_is_cut() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    before = graph.call_function(aten.relu.default, (x,))
    eager = graph.call_function(aten.sin.default, (before,))
    graph.output((graph.call_function(aten.add.Tensor, (before, eager)),))

    result = partition(graph, takers_of(graph, a=["relu_default", "add_tensor"]))

    assert names(result.steps) == [("a", ["relu_default"]), "sin_default", ("a", ["add_tensor"])]


def test_a_getitem_stays_with_the_call_whose_tuple_it_reads() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    parts = graph.call_function(aten.split.Tensor, (x, 2))
    first = graph.call_function(operator.getitem, (parts, 0))
    graph.output((graph.call_function(aten.relu.default, (first,)),))

    result = partition(graph, takers_of(graph, a=["split_tensor", "relu_default"]))

    assert names(result.steps) == ["split_tensor", "getitem", ("a", ["relu_default"])]


def test_a_write_in_place_runs_eager_between_the_reads_before_and_after_it() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    buffer = graph.get_attr("buffer")
    before = graph.call_function(aten.mul.Tensor, (buffer, x))
    graph.call_function(aten.add_.Tensor, (buffer, x))
    after = graph.call_function(aten.mul.Tensor, (buffer, x))
    graph.output((graph.call_function(aten.add.Tensor, (before, after)),))
    supported = ["mul_tensor", "add__tensor", "mul_tensor_1", "add_tensor"]

    result = partition(graph, takers_of(graph, a=supported))

    assert names(result.steps) == [
        ("a", ["mul_tensor"]),
        "add__tensor",
        ("a", ["mul_tensor_1", "add_tensor"]),
    ]


def test_a_write_through_a_view_counts_as_a_write_to_what_it_views() -> None:
    graph = Graph()
    buffer = graph.get_attr("buffer")
    view = graph.call_function(aten.view.default, (buffer, [-1]))
    before = graph.call_function(aten.relu.default, (buffer,))
    graph.call_function(aten.add_.Scalar, (view, 1))
    after = graph.call_function(aten.relu.default, (buffer,))
    graph.output((before, after))

    result = partition(graph, takers_of(graph, a=["relu_default", "relu_default_1"]))

    assert names(result.steps) == [
        "view_default",
        ("a", ["relu_default"]),
        "add__scalar",
        ("a", ["relu_default_1"]),
    ]


def test_few_nodes_are_not_worth_a_call() -> None:
    graph = chain(aten.relu.default, aten.sin.default)

    result = partition(graph, takers_of(graph, a=["relu_default"]), min_nodes=2)

    assert names(result.steps) == ["relu_default", "sin_default"]


def test_an_island_without_matrix_work_joins_the_neighbour_that_takes_it() -> None:
    graph = chain(aten.relu.default, aten.sin.default, aten.cos.default)
    everything = ["relu_default", "sin_default", "cos_default"]

    takers = takers_of(graph, a=["sin_default"], b=everything)
    result = partition(graph, takers)

    assert names(result.steps) == [("b", everything)]


def test_an_island_with_matrix_work_stays_with_the_engine_preferred_for_it() -> None:
    graph = Graph()
    x, weight = graph.placeholder("x"), graph.get_attr("weight")
    first = graph.call_function(aten.linear.default, (x, weight))
    relu = graph.call_function(aten.relu.default, (first,))
    second = graph.call_function(aten.linear.default, (relu, weight))
    graph.output((second,))
    linears = ["linear_default", "linear_default_1"]

    takers = takers_of(graph, a=linears, b=["relu_default", *linears])
    result = partition(graph, takers)

    assert [name for step in result.subgraphs for name in [step.engine]] == ["a", "b", "a"]


def test_an_atomic_group_goes_to_an_engine_that_takes_all_of_it() -> None:
    graph = chain(aten.relu.default, aten.sin.default)
    relu, sin = (node for node in graph.nodes if node.op == "call_function")

    takers = takers_of(graph, a=["relu_default"], b=["relu_default", "sin_default"])
    result = partition(graph, takers, atomic=[[relu, sin]])

    assert names(result.steps) == [("b", ["relu_default", "sin_default"])]


def test_refuses_an_atomic_group_with_something_between() -> None:
    graph = chain(aten.relu.default, aten.sin.default, aten.cos.default)
    relu, _, cos = (node for node in graph.nodes if node.op == "call_function")

    with pytest.raises(ValueError, match="lies on a path between"):
        partition(graph, {}, atomic=[[relu, cos]])


def test_branches_that_nothing_connects_are_cut_the_same_in_every_run() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    heads = [graph.call_function(aten.relu.default, (x,)) for _ in range(20)]
    graph.output(tuple(heads))
    takers = takers_of(graph, a=[head.name for head in heads[::3]])

    results = [names(partition(graph, takers).steps) for _ in range(3)]

    assert results[0] == results[1] == results[2]


def test_without_puts_the_nodes_of_a_subgraph_on_their_own() -> None:
    graph = chain(aten.relu.default, aten.sin.default)
    cut = partition(graph, takers_of(graph, a=["relu_default", "sin_default"]))

    assert names(without(cut, ["subgraph_0"]).steps) == ["relu_default", "sin_default"]
