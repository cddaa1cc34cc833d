import copy
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop  # pyright: ignore[reportUnknownVariableType]  # unannotated
from torch.fx import GraphModule, Node

from embedl_deploy import (
    TransformationPlan,
    apply_transformation_plan,
    get_transformation_plan,
    load_lowered,
    lower,
    transform,
)
from embedl_deploy.errors import VerificationError
from embedl_deploy.graph.nodes import source_line
from embedl_deploy.graph.record import record_of
from embedl_deploy.patterns import Chain, Pattern, PatternMatch, Phase
from embedl_deploy.tracing import trace

# torch.cond warns while it traces what reads a layer's output.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

ROWS = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


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


class Trade(Pattern):
    """Wrong: puts a tanh in place of a sigmoid."""

    phase = Phase.CONVERSION
    tree = Chain(act=nn.Sigmoid)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_module(nn.Tanh(), match.inputs[0])


def test_bodies_call_modules_and_the_model_keeps_its_keys() -> None:
    model = Condition().eval()

    graph = trace(model, (ROWS,))

    assert modules_called(graph) == ["ReLU"]
    assert list(graph.state_dict()) == list(model.state_dict())
    for rows in (ROWS, -ROWS):
        torch.testing.assert_close(graph(rows), model(rows))


def test_bodies_are_in_the_mode_of_the_model() -> None:
    graph = trace(Condition().eval(), (ROWS,))

    assert not any(module.training for module in graph.modules())
    assert all(module.training for module in graph.train().modules())


def test_the_record_says_that_weights_stay_operands_only_where_some_do() -> None:
    with_layer, without = trace(Condition().eval(), (ROWS,)), trace(Loop().eval(), (ROWS,))

    assert "keep their weights as operands" in record_of(with_layer).notes[0]
    assert record_of(without).notes == []


def test_what_stands_in_a_loop_names_the_line_of_the_loop() -> None:
    graph = trace(Loop().eval(), (ROWS,))

    body = graph.get_submodule("while_loop_body_graph_0")
    assert isinstance(body, GraphModule)
    lines = {source_line(node) for node in body.graph.nodes if node.op == "call_module"}
    assert len(lines) == 1
    assert (lines.pop() or "").startswith(__file__)


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


@pytest.mark.parametrize("model", [Loop(), Scan()], ids=["while_loop", "scan"])
def test_patterns_reach_into_loops_and_scans(model: nn.Module) -> None:
    model.eval()

    result = transform(model, (ROWS,), backend="tensorrt", verify=True)

    assert result.report.counts() == {"recompose-silu": 1}
    assert "SiLU" in modules_called(result.model)
    torch.testing.assert_close(result.model(-ROWS), model(-ROWS))


@pytest.mark.parametrize("model", [Condition(), Loop(), Scan()], ids=["cond", "while_loop", "scan"])
def test_rewritten_bodies_export_lower_and_save(model: nn.Module, tmp_path: Path) -> None:
    graph = transform(model.eval(), (ROWS,), backend="tensorrt").model
    exported = torch.export.export(graph, (ROWS,), strict=False).module()

    lowered = lower(graph, (ROWS,), engines=["eager"])
    lowered.save(tmp_path / "lowered")
    loaded = load_lowered(tmp_path / "lowered")

    for rows in (ROWS, -ROWS):
        expected = model(rows)
        torch.testing.assert_close(exported(rows), expected)
        torch.testing.assert_close(lowered(rows), expected)
        torch.testing.assert_close(loaded(rows), expected)


@pytest.mark.parametrize("model", [Loop(), Scan()], ids=["while_loop", "scan"])
def test_a_site_in_a_body_can_be_vetoed_and_the_plan_replayed(
    model: nn.Module, tmp_path: Path
) -> None:
    model.eval()
    plan = get_transformation_plan(model, (ROWS,), patterns=[Trade])
    (site,) = plan.sites()
    site.apply = False
    plan.save(tmp_path / "plan.json")

    kept = apply_transformation_plan(plan)
    replayed = TransformationPlan.load(tmp_path / "plan.json", model, (ROWS,), patterns=[Trade])

    assert kept.report.applied_count == 0
    assert apply_transformation_plan(replayed).report.applied_count == 0
    torch.testing.assert_close(kept.model(ROWS), model(ROWS))


@pytest.mark.parametrize("model", [Loop(), Scan()], ids=["while_loop", "scan"])
def test_a_wrong_rewrite_in_a_body_is_rolled_back(model: nn.Module) -> None:
    model.eval()

    unchecked = transform(model, (ROWS,), patterns=[Trade])
    checked = transform(model, (ROWS,), patterns=[Trade], verify=True)

    assert not torch.allclose(unchecked.model(ROWS), model(ROWS))
    assert "rolled back" in (next(checked.report.refusals()).reason or "")
    torch.testing.assert_close(checked.model(ROWS), model(ROWS))
    with pytest.raises(VerificationError, match="trade"):
        transform(model, (ROWS,), patterns=[Trade], verify="raise")


def test_bodies_inside_bodies_are_rewritten() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            def inner(y: Tensor) -> Tensor:
                z: Tensor = torch.cond(y.max() > 1, swish, torch.sin, (y,))
                return z

            y: Tensor = torch.cond(x.sum() > 0, inner, torch.tanh, (x,))
            return y

    model = Nested().eval()
    result = transform(model, (ROWS,), backend="tensorrt")
    lowered = lower(result.model, (ROWS,), engines=["eager"])

    assert modules_called(result.model) == ["SiLU", "Tanh"]
    for rows in (ROWS.abs(), ROWS.abs() / 10, -ROWS.abs()):
        torch.testing.assert_close(result.model(rows), model(rows))
        torch.testing.assert_close(lowered(rows), model(rows))
