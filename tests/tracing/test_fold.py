import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.tracing import trace

ROWS = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))


def targets(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


class WindowMask(nn.Module):
    """Fills a mask by slices of a tensor made like the input, as Swin does."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.new_zeros((4, 4))
        for row in range(2):
            for column in range(2):
                mask[row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] = row * 2 + column
        distance = mask.view(1, -1) - mask.view(-1, 1)
        return x + distance.masked_fill(distance != 0, -100.0)[:4, :4]


def test_a_mask_filled_in_place_becomes_one_constant() -> None:
    model = WindowMask()

    graph = trace(model, (ROWS,))

    assert targets(graph) == ["aten.add.Tensor"]
    assert torch.equal(graph(ROWS), model(ROWS))
    assert list(graph.state_dict()) == []


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Buffer(torch.arange(4))
        self.scale = nn.Buffer(torch.full((4,), 3.0))
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale + 1) + (self.positions * 2) + (self.weight * 2)


def test_float_buffers_and_parameters_are_never_folded() -> None:
    model = Buffers()
    graph = trace(model, (ROWS,))

    graph.load_state_dict({**model.state_dict(), "scale": torch.zeros(4), "weight": torch.zeros(4)})

    assert torch.equal(graph(ROWS), ROWS + torch.arange(4) * 2)
    assert targets(graph).count("aten.mul.Tensor") == 2


class ReturnsConstant(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, torch.zeros(3)


def test_a_constant_that_is_returned_is_a_new_tensor_in_every_call() -> None:
    graph = trace(ReturnsConstant(), (ROWS,))

    graph(ROWS)[1].add_(1)

    assert torch.equal(graph(ROWS)[1], torch.zeros(3))


class RandomNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(4)


def test_random_numbers_are_never_folded() -> None:
    graph = trace(RandomNoise(), (ROWS,))

    assert not torch.equal(graph(ROWS), graph(ROWS))


class Batched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.arange(4), torch.arange(4)

        def causal_row(row: Tensor) -> Tensor:
            return torch.vmap(row.ge)(columns)

        causal = torch.vmap(causal_row)(rows)
        return x.masked_fill(~causal, 0.0)


def test_vmap_is_written_out_and_its_mask_folded() -> None:
    model = Batched()

    graph = trace(model, (ROWS,))

    assert torch.equal(graph(ROWS), model(ROWS))
    assert targets(graph) == ["aten.masked_fill.Scalar"]


class WithoutGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().amax() + 1
        return x / scale


def test_no_grad_blocks_become_visible_and_keep_their_gradient() -> None:
    model = WithoutGradient()
    graph = trace(model, (ROWS,))
    ours, theirs = (ROWS.clone().requires_grad_() for _ in range(2))

    graph(ours).sum().backward()
    model(theirs).sum().backward()

    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert "aten.amax.default" in targets(graph)
