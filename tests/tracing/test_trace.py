import copy

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    ).eval()


def value(model: nn.Module, *args: Tensor) -> Tensor:
    with torch.no_grad():
        return model(*args)


def test_keeps_names_parameters_and_values() -> None:
    model = small_network()

    graph = trace(model, (IMAGE,))

    assert torch.equal(value(graph, IMAGE), value(model, IMAGE))
    assert list(graph.state_dict()) == list(model.state_dict())
    assert graph.get_submodule("0").weight is model[0].weight
    assert [type(graph.get_submodule(name)) for name in "0124"] == [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Linear,
    ]


def test_result_can_be_deep_copied_and_exported() -> None:
    model = small_network()
    graph = trace(model, (IMAGE,))

    exported = torch.export.export(graph, (IMAGE,), strict=False)

    assert torch.equal(value(exported.module(), IMAGE), value(model, IMAGE))
    assert torch.equal(value(copy.deepcopy(graph), IMAGE), value(model, IMAGE))


def test_one_tensor_given_for_two_inputs_stays_two_inputs() -> None:
    class Difference(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    same, other = torch.ones(2), torch.full((2,), 3.0)

    traced = trace(Difference(), (same, same))

    torch.testing.assert_close(traced(other, same), other - same)


class Taken(nn.Module):
    """Has a part with a name that graph modules need themselves."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Linear(4, 4))
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_a_part_named_as_a_graph_modules_own_is_named_and_may_lie_deeper(name: str) -> None:
    model, x = Taken(name).eval(), torch.randn(2, 4)

    with pytest.raises(TracingError, match=f"the model's own '{name}' cannot keep its name"):
        trace(model, (x,))

    held = nn.Sequential(model).eval()
    assert torch.equal(trace(held, (x,))(x), held(x))
