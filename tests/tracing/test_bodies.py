import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop  # pyright: ignore[reportUnknownVariableType]  # unannotated
from torch.fx import GraphModule

from embedl_deploy.tracing import trace
from embedl_deploy.transformation import transform

# torch.cond warns while it traces what reads a layer's output.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

ROWS = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


def attend(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.transpose(-2, -1) * 0.5, -1) @ x


class Condition(nn.Module):
    """Attends, or runs a layer; the sum of the input decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        def otherwise(y: Tensor) -> Tensor:
            return torch.relu(self.second(y))

        y: Tensor = torch.cond(x.sum() > 0, attend, otherwise, (self.first(x),))
        return y


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def goes_on(step: Tensor, y: Tensor) -> Tensor:
            del y
            return step < 3

        def body(step: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return step + 1, y * torch.sigmoid(y)

        found = cast("tuple[Tensor, Tensor]", while_loop(goes_on, body, (torch.tensor(0), x)))
        return found[1]


class Scan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def combine(carry: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            carry = torch.relu(carry + y)
            return carry, carry * torch.sigmoid(carry)

        found: tuple[Tensor, Tensor] = scan(combine, torch.zeros(4, 8), x)
        return found[1]


def modules_called(graph: GraphModule) -> list[str]:
    """Returns the types of the modules that the bodies of ``graph`` call."""
    return [
        type(body.get_submodule(str(node.target))).__name__
        for body in list(graph.modules())[1:]
        if isinstance(body, GraphModule)
        for node in body.graph.nodes
        if node.op == "call_module"
    ]


def test_bodies_call_modules_and_the_model_keeps_its_keys() -> None:
    model = Condition().eval()

    graph = trace(model, (ROWS,))

    assert modules_called(graph) == ["ReLU"]
    assert list(graph.state_dict()) == list(model.state_dict())
    for rows in (ROWS, -ROWS):
        torch.testing.assert_close(graph(rows), model(rows))


def test_patterns_reach_into_conditions() -> None:
    model = Condition().eval()

    result = transform(model, (ROWS,), backend="tensorrt", verify=True)

    assert modules_called(result.model) == ["FusedAttention", "ReLU"]
    for rows in (ROWS, -ROWS):
        torch.testing.assert_close(result.model(rows), model(rows))


def test_gradients_flow_through_rewritten_conditions() -> None:
    model = Condition().eval()
    graph = copy.deepcopy(transform(model, (ROWS,), backend="tensorrt").model)

    for rows in (ROWS, -ROWS):
        graph(rows).sum().backward()
        model(rows).sum().backward()

    for ours, theirs in zip(graph.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_patterns_reach_into_loops_and_scans() -> None:
    for model in (Loop(), Scan()):
        result = transform(model.eval(), (ROWS,), backend="tensorrt", verify=True)

        assert result.report.counts() == {"recompose-silu": 1}
        assert "SiLU" in modules_called(result.model)
        torch.testing.assert_close(result.model(ROWS), model(ROWS))


def test_a_rewritten_condition_can_be_exported() -> None:
    model = Condition().eval()
    graph = transform(model, (ROWS,), backend="tensorrt").model

    exported = torch.export.export(graph, (ROWS,), strict=False).module()

    for rows in (ROWS, -ROWS):
        torch.testing.assert_close(exported(rows), model(rows))
