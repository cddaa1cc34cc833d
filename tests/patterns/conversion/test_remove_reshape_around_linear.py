import torch
from torch import Tensor, nn

from embedl_deploy.patterns import RemoveReshapeAroundLinear
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_refusal, check_rewrite
from embedl_deploy.tracing import trace

ROWS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


class ByHand(nn.Module):
    """Flattens the rows, multiplies, and gives them back their shape."""

    def __init__(self, linear: nn.Module, shape: tuple[int, ...] = (2, 5, 6)) -> None:
        super().__init__()
        self.linear = linear
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.reshape(-1, 4))
        return y.view(self.shape)


class Conv1d(nn.Module):
    """GPT-2's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 6))
        self.bias = nn.Parameter(torch.empty(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def test_removes_both_reshapes() -> None:
    linear = nn.Linear(4, 6)

    check_rewrite(RemoveReshapeAroundLinear(), ByHand(linear), nn.Sequential(linear), ROWS)


def test_removes_them_around_a_transposed_weight() -> None:
    graph = trace(ByHand(Conv1d()), (ROWS,))

    record = apply_patterns(graph, [RemoveReshapeAroundLinear])

    assert len(record.applied) == 1
    assert len(graph.graph.nodes) == 3


def test_takes_several_layers_that_read_the_same_flattened_rows() -> None:
    class Twice(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.reshape(-1, 4)
            y: Tensor = self.linear(rows).view(self.shape)
            z: Tensor = self.linear(rows * 2).view(self.shape)
            return y + z + self.linear(rows).view(self.shape)

    model = Twice(nn.Linear(4, 6))
    graph = trace(model, (ROWS,))

    record = apply_patterns(graph, [RemoveReshapeAroundLinear])
    graph.recompile()

    assert len(record.applied) == 2
    torch.testing.assert_close(graph(ROWS), model(ROWS))


def test_refuses_a_result_whose_flat_rows_are_read() -> None:
    class Reads(ByHand):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x.reshape(-1, 4))
            return y.view(self.shape) * y.sum()

    check_refusal(
        RemoveReshapeAroundLinear(),
        Reads(nn.Linear(4, 6)),
        because="used before its rows are regrouped",
        example=ROWS,
    )


def test_leaves_a_reshape_to_another_shape() -> None:
    graph = trace(ByHand(nn.Linear(4, 6), (5, 2, 6)), (ROWS,))

    assert not apply_patterns(graph, [RemoveReshapeAroundLinear]).applied
