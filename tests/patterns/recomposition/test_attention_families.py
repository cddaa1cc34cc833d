"""Attention as model families write it, from the model to fused modules."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.modules import FusedAttention
from embedl_deploy.testing import randomize
from embedl_deploy.transformation import TransformationResult, transform

ROWS = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
ANGLES = torch.outer(torch.arange(8.0), torch.tensor([1.0, 0.1]))
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Projections of their own or one for all, then ``attend`` on (batch, heads, rows, size)."""

    def __init__(
        self, attend: Attend, heads: int = 4, kv_heads: int = 4, fused: bool = True
    ) -> None:
        super().__init__()
        self.attend, self.heads, self.kv_heads, self.fused = attend, heads, kv_heads, fused
        width = 16 + 2 * 4 * kv_heads
        self.projections = nn.ModuleList(
            [nn.Linear(16, width)]
            if fused
            else [nn.Linear(16, n) for n in (16, 4 * kv_heads, 4 * kv_heads)]
        )
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        made = [layer(x) for layer in self.projections]
        if self.fused:
            made = list(made[0].split([16, 4 * self.kv_heads, 4 * self.kv_heads], -1))
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in made)
        y: Tensor = self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return y


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(4), -1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def causal_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    scores = (q @ k.mT * 0.5).masked_fill(later, torch.finfo(q.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


def relative_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q * 0.5 @ k.mT + BIAS, -1) @ v


def cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = torch.clamp(torch.full((4, 1, 1), 2.0), max=math.log(100.0)).exp()
    scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * scale
    return torch.softmax(scores + 16 * torch.sigmoid(BIAS), -1) @ v


def rotary(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        cos, sin = ANGLES.cos(), ANGLES.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    return by_hand(turned(q), turned(k), v)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (part.repeat_interleave(2, dim=1) for part in (k, v))
    return by_hand(q, k, v)


def expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def shared(x: Tensor) -> Tensor:
        return x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(2, 4, 8, 4)

    return functional.scaled_dot_product_attention(q, shared(k), shared(v))


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.reshape(2, 2, 2, 8, 4) @ k.unsqueeze(2).mT * 0.5
    return (torch.softmax(scores, -1) @ v.unsqueeze(2)).flatten(1, 2)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(0.5).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def flat_batches(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.reshape(8, 8, 4) for part in (q, k, v))
    return torch.bmm(torch.softmax(torch.bmm(q * 0.5, k.mT), -1), v).view(2, 4, 8, 4)


def across_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.mT, k.mT, v.mT
    scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
    return (scores.softmax(-1) @ v).mT


FUSED: dict[str, Attention] = {
    "one projection": Attention(by_hand),
    "three projections": Attention(by_hand, fused=False),
    "causal": Attention(causal),
    "causal by hand": Attention(causal_by_hand),
    "relative-position bias": Attention(relative_bias),
    "cosine (Swin v2)": Attention(cosine),
    "rotary": Attention(rotary, fused=False),
    "repeated keys": Attention(repeated, kv_heads=2, fused=False),
    "expanded keys": Attention(expanded, kv_heads=2),
    "grouped queries, five dimensions": Attention(grouped, kv_heads=2),
    "einsum": Attention(by_einsum),
    "batches and heads in one": Attention(flat_batches),
    "across channels": Attention(across_channels),
}


def transformed(model: nn.Module, example: Tensor) -> TransformationResult:
    randomize(model.eval())
    result = transform(model, (example,), backend="tensorrt", verify=True)
    assert not [site for site in result.report.refusals() if "rolled back" in str(site)]
    torch.testing.assert_close(result.model(example), model(example), rtol=1e-4, atol=1e-5)
    return result


def fused_attentions(result: TransformationResult) -> int:
    return sum(isinstance(module, FusedAttention) for module in result.model.modules())


@pytest.mark.parametrize("name", FUSED)
def test_fuses_attention_however_it_is_written(name: str) -> None:
    result = transformed(FUSED[name], ROWS)

    assert fused_attentions(result) == 1
    assert not [node for node in result.model.graph.nodes if "softmax" in str(node.target)]


def without_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)


def talking_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mixed = torch.einsum("bhqk,hg->bgqk", q @ k.mT, BIAS[:, 0, :4])
    return mixed.softmax(-1) @ v


@pytest.mark.parametrize("attend", [without_softmax, talking_heads])
def test_leaves_other_kinds_of_attention_alone(attend: Attend) -> None:
    result = transformed(Attention(attend), ROWS)

    assert fused_attentions(result) == 0


class ShiftedWindows(nn.Module):
    """Swin's attention in windows of 2 × 2, shifted by one, masked where windows wrap around."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(9, 2))
        rows, columns = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
        apart = (rows.flatten()[:, None] - rows.flatten()) * 3 + columns.flatten()[:, None]
        self.register_buffer("index", (apart - columns.flatten()) + 4, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        q, k, v = (
            self.qkv(x.reshape(-1, 4, channels)).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        )
        index: Tensor = self.get_buffer("index")
        scores = q * 0.5 @ k.transpose(-2, -1)
        scores = scores + self.table[index.view(-1)].view(4, 4, 2).permute(2, 0, 1).unsqueeze(0)
        if self.shift:
            scores = scores.view(batch, -1, 2, 4, 4) + self.mask(x).unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, 2, 4, 4)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 2, 2, channels)
        y = y.view(batch, height // 2, width // 2, 2, 2, channels).transpose(2, 3)
        y = torch.roll(y.reshape(batch, height, width, channels), (self.shift,) * 2, (1, 2))
        attended: Tensor = self.out(y)
        return attended

    def mask(self, x: Tensor) -> Tensor:
        regions = x.new_zeros((4, 4))
        for row in (slice(0, -2), slice(-2, -1), slice(-1, None)):
            for column in (slice(0, -2), slice(-2, -1), slice(-1, None)):
                regions[row, column] = 3 * (row.start or 0) + (column.start or 0)
        windows = regions.view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
        apart = windows.unsqueeze(1) - windows.unsqueeze(2)
        return apart.masked_fill(apart != 0, -100.0)


@pytest.mark.parametrize("shift", [0, 1])
def test_fuses_shifted_windows(shift: int) -> None:
    image = torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(2))

    result = transformed(ShiftedWindows(shift), image)

    assert fused_attentions(result) == 1


def test_several_batches_run_through_one_graph() -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    model = randomize(Attention(by_hand).eval())

    graph = transform(
        model, (ROWS,), backend="tensorrt", dynamic_shapes={"x": {0: batch}}, verify=True
    ).model

    for size in (1, 2, 7):
        rows = torch.randn(size, 8, 16)
        torch.testing.assert_close(graph(rows), model(rows), rtol=1e-4, atol=1e-5)
