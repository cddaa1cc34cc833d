import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.errors import TracingError
from embedl_deploy.tracing import trace
from embedl_deploy.tracing.write import is_write

IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def through_slices(y: Tensor) -> None:
    y[:, 1:3, ::2] *= 3
    y[..., 1] = y[..., 2]
    y[1] = 0


def through_splits(y: Tensor) -> None:
    first, second = y.chunk(2, 1)
    first += second.mean(1, keepdim=True)
    y.split([3, 5], 3)[1].sub_(1)
    y.unbind(0)[0].mul_(2)


def through_reshapes(y: Tensor) -> None:
    y.view(2, -1)[:, ::2] *= 3
    y.flatten(2).unsqueeze(1).squeeze(1).add_(1)
    y.reshape(2, 4, 64)[0].neg_()


def through_permutes(y: Tensor) -> None:
    y.transpose(1, 2)[0] = 0.5
    y.permute(2, 3, 0, 1)[1, 2].clamp_(0)
    y[0, 0].diagonal().fill_(9)


def by_masks(y: Tensor) -> None:
    y.masked_fill_(y > 1, 1.0)
    y[y < 0] = 0.5


def by_other_dtypes(y: Tensor) -> None:
    y.copy_(torch.ones(8, 8, dtype=torch.int64) * 3)
    y += torch.full((8,), 0.1, dtype=torch.float64)


def by_overloads_of_other_names(y: Tensor) -> None:
    y.pow_(2)
    y[0].pow_(torch.tensor(3.0))
    y //= torch.tensor(0.3)
    y.ldexp_(torch.tensor(2))
    functional.dropout(y, 0.5, training=False, inplace=True)


WRITES = {
    write.__name__: write
    for write in (
        through_slices,
        through_splits,
        through_reshapes,
        through_permutes,
        by_masks,
        by_other_dtypes,
        by_overloads_of_other_names,
    )
}


class Writes(nn.Module):
    """Writes in place between two reads of the same tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x * 2
        view = y.transpose(0, 1)
        before = view + 0
        WRITES[self.kind](y)
        return y, view, before


@pytest.mark.parametrize("kind", WRITES)
def test_writes_through_views_reach_the_base_and_its_other_views(kind: str) -> None:
    model = Writes(kind)

    graph = trace(model, (IMAGE,))

    for ours, theirs in zip(graph(IMAGE), model(IMAGE), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert not any(is_write(node) for node in graph.graph.nodes)


class WritesAfterDropout(nn.Module):
    """In eval mode dropout returns its input, so the write reaches ``y``."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        torch.dropout(y, 0.5, False).relu_()
        return y


def test_a_write_to_the_result_of_an_idle_dropout_reaches_its_input() -> None:
    graph = trace(WritesAfterDropout().eval(), (IMAGE,))

    assert torch.equal(graph(IMAGE), (IMAGE + 1).relu())


class WritesToInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[0] = 0
        return x


def test_refuses_a_write_to_an_input_and_names_the_line() -> None:
    with pytest.raises(TracingError, match=r"input 'x' in place .*test_functional\.py:\d+"):
        trace(WritesToInput(), (IMAGE,))


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Buffer(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


def test_refuses_a_write_to_a_buffer_and_names_it() -> None:
    with pytest.raises(TracingError, match="own buffer 'count' in place"):
        trace(Counts(), (IMAGE,))


class WritesThroughExpand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        y[:, :1].unfold(3, 2, 2).add_(1)
        return y


def test_refuses_a_view_that_cannot_be_written_back() -> None:
    with pytest.raises(TracingError, match="cannot be written back"):
        trace(WritesThroughExpand(), (IMAGE,))


class FilledDiagonal(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x[0, 0] * 2
        view = scores[:, 1:]
        scores.fill_diagonal_(-1.0)
        return scores, view


def test_a_filled_diagonal_reaches_the_matrix_and_its_views() -> None:
    model = FilledDiagonal()

    graph = trace(model, (IMAGE,))

    for ours, theirs in zip(graph(IMAGE), model(IMAGE), strict=True):
        assert torch.equal(ours, theirs)
