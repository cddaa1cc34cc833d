import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from embedl_deploy.graph import value_of
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.graph.values import infer_value, same_value, value_text
from embedl_deploy.tracing import trace

aten = torch.ops.aten
ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
ROWS = torch.export.Dim("rows", min=2, max=64)


def test_values_are_inferred_without_guards() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    graph_module = trace(model, (ROW,), dynamic_shapes=({0: ROWS},))
    (entry,) = graph_module.graph.find_nodes(op="placeholder")
    value = value_of(entry)
    assert isinstance(value, FakeTensor)
    environment = value.fake_mode.shape_env
    assert environment is not None
    guards = len(environment.guards)

    with graph_module.graph.inserting_after(entry):
        flat = graph_module.graph.call_function(aten.flatten.using_ints, (entry,))
    found = infer_value(flat)

    assert isinstance(found, Tensor)
    assert str(found.shape[0]) == f"4*{value.shape[0]}"
    assert len(environment.guards) == guards


def test_a_parameter_is_read_as_a_fake_tensor() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(4, 4)).eval(), (ROW,))
    with graph_module.graph.inserting_before(next(iter(graph_module.graph.nodes))):
        read = graph_module.graph.get_attr("0.weight")

    found = infer_value(read)

    assert isinstance(found, FakeTensor)
    assert found.shape == (4, 4)


def test_values_are_compared_by_structure_shape_and_dtype() -> None:
    a = torch.zeros(2, 3)

    assert same_value(a, torch.ones(2, 3))
    assert not same_value(a, torch.zeros(3, 2))
    assert not same_value(a, torch.zeros(2, 3, dtype=torch.float64))
    assert same_value((a, a), [a, a])
    assert not same_value((a, a), (a,))
    assert not same_value(a, 3)
    assert value_text((a, 3)) == "(float32[2, 3], int)"


def test_distance_is_relative_and_sees_every_difference() -> None:
    a = torch.tensor([3.0, 4.0])
    infinite = torch.tensor([1.0, float("inf")])

    assert relative_error(a, a) == 0
    assert abs(relative_error(a + torch.tensor([0.0, 0.5]), a) - 0.1) < 1e-12
    assert relative_error({"a": a}, {"a": a, "b": a}) == float("inf")
    assert relative_error(a, a.to(torch.float64)) == float("inf")
    assert relative_error(infinite, infinite) == 0
    assert relative_error(infinite, torch.tensor([1.0, 2.0])) == float("inf")
    assert relative_error(torch.tensor(float("nan")), torch.tensor(1.0)) == float("inf")
