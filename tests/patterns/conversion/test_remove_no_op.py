from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.patterns import (
    Pattern,
    RemoveNoOpArithmetic,
    RemoveNoOpCast,
    RemoveNoOpCopy,
    RemoveNoOpReshape,
)
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_refusal, check_rewrite
from embedl_deploy.tracing import trace

X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
Body = Callable[[Tensor], Tensor]


class Around(nn.Module):
    """Runs a function between two layers, so that input and output stay out of the way."""

    def __init__(self, body: Body | None = None) -> None:
        super().__init__()
        self.body = body
        self.before = nn.ReLU()
        self.after = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.before(x)
        z: Tensor = self.after(y if self.body is None else self.body(y))
        return z


NO_OPS: list[tuple[type[Pattern], Body]] = [
    (RemoveNoOpArithmetic, lambda x: x + 0),
    (RemoveNoOpArithmetic, lambda x: x - 0.0),
    (RemoveNoOpArithmetic, lambda x: x * 1.0),
    (RemoveNoOpArithmetic, lambda x: x / 1),
    (RemoveNoOpCast, lambda x: x.to(torch.float32)),
    (RemoveNoOpCopy, lambda x: x.clone()),
    (RemoveNoOpCopy, lambda x: x.contiguous()),
    (RemoveNoOpReshape, lambda x: x.view(2, 3, 4, 5)),
    (RemoveNoOpReshape, lambda x: x.reshape(2, -1, 4, 5)),
    (RemoveNoOpReshape, lambda x: x.expand(2, -1, 4, 5)),
    (RemoveNoOpReshape, lambda x: x.permute(0, 1, -2, 3)),
    (RemoveNoOpReshape, lambda x: x.transpose(1, -3)),
    (RemoveNoOpReshape, lambda x: x.roll((0, 0), (1, 2))),
    (RemoveNoOpReshape, lambda x: nn.functional.pad(x, (0, 0, 0, 0))),
    (RemoveNoOpCopy, lambda x: x[:, :3]),
    (RemoveNoOpReshape, lambda x: torch.ops.aten.slice.Tensor(x, 1, 0, 3)),
]


@pytest.mark.parametrize(("pattern", "body"), NO_OPS)
def test_removes_what_changes_nothing(pattern: type[Pattern], body: Body) -> None:
    graph = trace(Around(body), (X,))

    apply_patterns(graph, [pattern], until_fixpoint=True)
    graph.recompile()

    assert [node.op for node in graph.graph.nodes if node.op == "call_function"] == []
    torch.testing.assert_close(graph(X), X.relu().tanh(), rtol=0, atol=0)


def test_the_check_of_a_rewrite_holds_too() -> None:
    check_rewrite(RemoveNoOpArithmetic(), Around(lambda x: x * 1.0), Around(), X)


SOMETHING: list[tuple[type[Pattern], Body]] = [
    (RemoveNoOpArithmetic, lambda x: x + 1),
    (RemoveNoOpArithmetic, lambda x: x * 0),
    (RemoveNoOpArithmetic, lambda x: torch.div(x, 1, rounding_mode="floor")),
    (RemoveNoOpArithmetic, lambda x: (x > 0) * 1.0),
    (RemoveNoOpCast, lambda x: x.to(torch.float64)),
    (RemoveNoOpCopy, lambda x: x.transpose(1, 2).contiguous()),
    (RemoveNoOpCopy, lambda x: x.contiguous(memory_format=torch.channels_last)),
    (RemoveNoOpReshape, lambda x: x.permute(0, 1, 3, 2)),
    (RemoveNoOpReshape, lambda x: x.view(2, 12, 5)),
    (RemoveNoOpReshape, lambda x: x.roll((1, 0), (1, 2))),
    (RemoveNoOpReshape, lambda x: nn.functional.pad(x, (1, -1))),
    (RemoveNoOpReshape, lambda x: x[:, ::2]),
]


@pytest.mark.parametrize(("pattern", "body"), SOMETHING)
def test_leaves_what_changes_something(pattern: type[Pattern], body: Body) -> None:
    graph = trace(Around(body), (X,))

    record = apply_patterns(graph, [pattern])

    assert not record.applied


def test_refuses_to_return_an_input_for_its_copy() -> None:
    class Copies(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone()

    check_refusal(RemoveNoOpCopy(), Copies(), because="returned to the caller", example=X)
