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


class WithUnreadMask(nn.Module):
    """Makes two masks by vmap and reads the first only."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(4)

        def read(row: Tensor) -> Tensor:
            return rows <= row

        def unread(row: Tensor) -> Tensor:
            return rows < row

        mask, _ = torch.vmap(read)(rows), torch.vmap(unread)(rows)
        return x.masked_fill(~mask, 0.0)


def test_a_vmap_that_nothing_reads_is_dropped() -> None:
    model = WithUnreadMask()

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


class NumbersFromConstants(nn.Module):
    """Reads sizes off a tensor that no input changes, as Funnel does."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        positions = torch.arange(4).float()
        last = positions[-1].item()
        offsets = torch.arange(0, last + 1, 2.0)
        columns = x @ x.new_ones(4, 1) * offsets
        return columns.reshape(2, offsets.shape[0], -1), columns.shape[-1]


def test_numbers_read_off_constants_become_literals_and_sizes_known() -> None:
    model = NumbersFromConstants()

    graph = trace(model, (ROWS,))

    values = [node.meta["val"] for node in graph.graph.nodes if node.op != "output"]
    assert torch.equal(graph(ROWS)[0], model(ROWS)[0])
    assert graph(ROWS)[1] == 2
    assert "aten.item.default" not in targets(graph)
    assert all(isinstance(size, int) for value in values for size in value.shape)


class LowestOfDouble(nn.Module):
    """Makes its mask in float32, out of the lowest float64, as CLIP does."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((4, 4), torch.finfo(x.dtype).min).triu(1)
        return torch.softmax(x + mask.to(x.dtype), -1)


def test_a_number_beyond_its_dtype_becomes_the_largest_there_is() -> None:
    rows = ROWS.double()
    mask = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)

    graph = trace(LowestOfDouble(), (rows,))

    torch.testing.assert_close(graph(rows), torch.softmax(rows + mask, -1))


class NestedBlocks(nn.Module):
    """Two layers, each with a block without gradients around one without autocast."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                angles = x.float().sin()
            with torch.autocast("cpu", enabled=False):
                x = x * angles.cos()
        return x


def test_blocks_inside_blocks_become_visible_in_every_layer() -> None:
    model = NestedBlocks()

    graph = trace(model, (ROWS,))

    assert torch.equal(graph(ROWS), model(ROWS))
    assert targets(graph).count("aten.sin.default") == 2
    assert not any("wrap_with" in target for target in targets(graph))


class ViewedAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        attended = nn.functional.scaled_dot_product_attention(x, x, x)
        return attended.transpose(0, 1).transpose(0, 1).view(2, 16)


def test_views_hold_whatever_the_layout_they_read() -> None:
    graph = trace(ViewedAttention(), (ROWS,))

    strided = ROWS.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(graph(strided), ViewedAttention()(ROWS))
    assert "aten.view.default" not in targets(graph)
