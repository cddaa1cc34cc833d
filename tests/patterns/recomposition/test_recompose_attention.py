import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.graph import graph_text
from embedl_deploy.patterns import FuseAttention, RecomposeAttention
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_refusal
from embedl_deploy.tracing import trace

HEADS = (2, 3, 5, 4)
Spelling = Callable[[Tensor, Tensor, Tensor], Tensor]


def heads(seed: int, shape: tuple[int, ...] = HEADS) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


QKV = (heads(0), heads(1), heads(2))
ADDED = heads(3, (2, 1, 5, 5))
GRID = heads(5, (2, 3, 2, 2, 2))
FACTORS = heads(6, (3, 1, 1))
MIXED = heads(7, (3, 3, 1, 1))
GRID_HIDDEN = heads(8, (2, 2, 4)) > 1.0
HIDDEN = heads(4, (5, 5)) > 0.5
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


class Spelled(nn.Module):
    """Attention as a function spells it, with constants where the function reads them."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.spelling(q, k, v)


def softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1)


SPELLINGS: dict[str, Spelling] = {
    "scaled product": lambda q, k, v: softmax(q @ k.transpose(-2, -1) * 0.5) @ v,
    "divided product": lambda q, k, v: softmax(q @ k.mT / math.sqrt(4)) @ v,
    "negative dimensions": lambda q, k, v: softmax(q @ k.transpose(3, 2) * 0.5) @ v,
    "permuted keys": lambda q, k, v: softmax(q @ k.permute(0, 1, 3, 2) * 0.5) @ v,
    "scaled queries": lambda q, k, v: softmax((q * 0.5) @ k.transpose(-2, -1)) @ v,
    "both scaled": lambda q, k, v: softmax((q * 0.7) @ (k * 0.7).transpose(-2, -1)) @ v,
    "scale on the left": lambda q, k, v: softmax(0.5 * (q @ k.transpose(-2, -1))) @ v,
    "added mask": lambda q, k, v: softmax(q @ k.transpose(-2, -1) * 0.5 + ADDED) @ v,
    "subtracted mask": lambda q, k, v: softmax(q @ k.transpose(-2, -1) * 0.5 - ADDED) @ v,
    "mask on the left": lambda q, k, v: softmax(ADDED + q @ k.transpose(-2, -1) * 0.5) @ v,
    "scaled after the mask": lambda q, k, v: softmax((q @ k.mT + ADDED) * 0.5) @ v,
    "less its maximum": lambda q, k, v: (
        softmax(((s := q @ k.mT * 0.25) - s.amax(-1, keepdim=True)) * 2.0) @ v
    ),
    "less its maximum, unsqueezed": lambda q, k, v: (
        softmax((s := q @ k.mT) - s.max(-1)[0].unsqueeze(-1)) @ v
    ),
    "bounded below": lambda q, k, v: (
        softmax(torch.max(q @ k.mT, torch.tensor(torch.finfo(torch.float32).min))) @ v
    ),
    "clamped": lambda q, k, v: softmax((q @ k.mT).clamp(min=-3e38)) @ v,
    "mask of the scores' shape": lambda q, k, v: (
        softmax((s := q @ k.mT).masked_fill(HIDDEN.expand_as(s), -math.inf)) @ v
    ),
    "two masks": lambda q, k, v: softmax(q @ k.mT + ADDED + ADDED.mT) @ v,
    "filled": lambda q, k, v: softmax((q @ k.mT).masked_fill(HIDDEN, -math.inf)) @ v,
    "filled in place": lambda q, k, v: softmax((q @ k.mT).masked_fill_(HIDDEN, -math.inf)) @ v,
    "filled with -1e9": lambda q, k, v: softmax((q @ k.mT).masked_fill(HIDDEN, -1e9)) @ v,
    "causal where": lambda q, k, v: softmax(torch.where(LATER, -math.inf, q @ k.mT)) @ v,
    "kept where": lambda q, k, v: softmax(torch.where(~LATER, q @ k.mT, -math.inf)) @ v,
    "dropout": lambda q, k, v: torch.dropout(softmax(q @ k.mT), 0.1, False) @ v,
    "module softmax": lambda q, k, v: nn.Softmax(dim=3)(q @ k.mT) @ v,
    "keys transposed before": lambda q, k, v: softmax(q @ k.reshape(2, 3, 4, 5)) @ v,
    "rows scaled by a tensor": lambda q, k, v: (
        softmax(q @ k.mT * k.new_tensor([[[0.3]], [[0.5]], [[0.7]]]) + ADDED) @ v
    ),
    "rows divided by a tensor": lambda q, k, v: (
        softmax(q @ k.mT / k.new_tensor([[[0.3]], [[0.5]], [[0.7]]])) @ v
    ),
    "mask over keys on a grid": lambda q, k, v: (
        softmax(
            (
                (q[..., :4, :] @ k[..., :4, :].mT).view(2, 3, 2, 2, 2, 2)
                + GRID[..., None]
                - GRID.unsqueeze(-2)
            ).view(2, 3, 4, 4)
        )
        @ v[..., :4, :]
    ),
    "one mask over the grid of keys": lambda q, k, v: (
        softmax(((q @ k[..., :4, :].mT).view(2, 3, 5, 2, 2) + GRID[:1, :1, :1, 0]).view(2, 3, 5, 4))
        @ v[..., :4, :]
    ),
    "filled on a grid": lambda q, k, v: (
        softmax(
            (q[..., :4, :] @ k[..., :4, :].mT)
            .view(6, 2, 2, 4)
            .masked_fill(GRID_HIDDEN, -math.inf)
            .view(2, 3, 4, 4)
        )
        @ v[..., :4, :]
    ),
    "transposed product": lambda q, k, v: v.mT @ softmax(q @ k.mT * 0.5).transpose(-2, -1),
    "one batch dimension": lambda q, k, v: torch.bmm(
        softmax(torch.bmm(q[:, 0], k[:, 0].mT) * 0.5), v[:, 0]
    ),
    "bias in the product": lambda q, k, v: (
        softmax(torch.baddbmm(ADDED[:, 0], q[:, 0], k[:, 0].mT, alpha=0.5)) @ v[:, 0]
    ),
    "regrouped after the product": lambda q, k, v: (
        softmax((q.reshape(6, 5, 4) @ k.reshape(6, 5, 4).mT).view(2, 3, 5, 5) + ADDED) @ v
    ),
    "regrouped mask": lambda q, k, v: (
        softmax(((q @ k.mT).view(2, 1, 3, 5, 5) + ADDED.view(2, 1, 1, 5, 5)).view(2, 3, 5, 5)) @ v
    ),
    "windows": lambda q, k, v: (
        softmax(
            ((q @ k.mT + ADDED[:1]).view(1, 2, 3, 5, 5) + ADDED.view(2, 1, 5, 5)).view(-1, 3, 5, 5)
        )
        @ v
    ),
    "grouped keys": lambda q, k, v: (
        softmax(q @ k[:, :1].expand(2, 3, 5, 4).transpose(2, 3) * 0.5) @ v[:, :1].expand(2, 3, 5, 4)
    ),
    "shared keys": lambda q, k, v: softmax(q @ k[:, :1].transpose(2, 3)) @ v[:, :1],
    "five dimensions": lambda q, k, v: softmax(q[None] @ k[None].mT + ADDED) @ v[None],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_recomposes_every_spelling(name: str) -> None:
    model = Spelled(SPELLINGS[name])
    graph = trace(model, QKV)

    record = apply_patterns(graph, [RecomposeAttention])
    apply_patterns(graph, [FuseAttention])
    graph.recompile()

    assert [str(site) for site in record.refused] == []
    assert len(record.applied) == 1
    assert "softmax" not in graph_text(graph)
    torch.testing.assert_close(graph(*QKV), model(*QKV), rtol=1e-5, atol=1e-5)


def test_takes_the_scale_out_of_the_graph() -> None:
    graph = trace(Spelled(SPELLINGS["both scaled"]), QKV)

    apply_patterns(graph, [RecomposeAttention])

    assert "ScaledDotProductAttention(scale=0.48999999999999994)" in graph_text(graph)


def test_leaves_a_scaled_query_that_something_else_reads() -> None:
    class Reads(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            q = q * 0.5
            return softmax(q @ k.transpose(-2, -1)) @ v, q

    graph = trace(Reads(), QKV)

    record = apply_patterns(graph, [RecomposeAttention])
    graph.recompile()

    assert len(record.applied) == 1
    torch.testing.assert_close(graph(*QKV), Reads()(*QKV))


def test_a_view_reads_the_result_whatever_its_layout() -> None:
    model = Spelled(lambda q, k, v: (softmax(q @ k.mT) @ v).view(2, 3, -1))
    graph = trace(model, QKV)

    apply_patterns(graph, [RecomposeAttention])
    apply_patterns(graph, [FuseAttention])
    graph.recompile()

    torch.testing.assert_close(graph(*QKV), model(*QKV))


def test_runs_at_other_sizes_than_the_example() -> None:
    batch, rows = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("rows", min=2, max=64)
    model = Spelled(lambda q, k, v: softmax(q @ k.transpose(-2, -1) * 0.5) @ v)
    graph = trace(model, QKV, dynamic_shapes=({0: batch, 2: rows},) * 3)

    record = apply_patterns(graph, [RecomposeAttention])
    graph.recompile()

    larger = (heads(0, (5, 3, 9, 4)), heads(1, (5, 3, 9, 4)), heads(2, (5, 3, 9, 4)))
    assert len(record.applied) == 1
    torch.testing.assert_close(graph(*larger), model(*larger))


def with_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = softmax(q @ k.mT)
    return (weights @ v).sum() + weights


REFUSED: dict[str, tuple[Spelling, str]] = {
    "over queries": (
        lambda q, k, v: torch.softmax(q @ k.mT, 2) @ v,
        "does not run over the last dimension",
    ),
    "soft cap": (
        lambda q, k, v: softmax(torch.tanh(q @ k.mT)) @ v,
        "stands between the scores and the softmax",
    ),
    "scores times a tensor": (
        lambda q, k, v: softmax((q @ k.mT) * ADDED) @ v,
        "multiplied by",
    ),
    "small fill": (
        lambda q, k, v: softmax((q @ k.mT).masked_fill(HIDDEN, -3.0)) @ v,
        "puts -3.0 in place of scores",
    ),
    "mask scaled by a tensor": (
        lambda q, k, v: softmax((q @ k.mT + ADDED) * FACTORS) @ v,
        "mask is scaled by a tensor",
    ),
    "regrouped and scaled": (
        lambda q, k, v: (
            softmax(((q @ k.mT).view(6, 5, 5) * FACTORS.repeat(2, 1, 1)).view(2, 3, 5, 5)) @ v
        ),
        "regrouped before a tensor scales them",
    ),
    "scaled on a grid": (
        lambda q, k, v: (
            softmax(
                ((q @ k[..., :4, :].mT).view(2, 3, 5, 2, 2) * GRID[0, 0, 0, :, :1]).view(2, 3, 5, 4)
            )
            @ v[..., :4, :]
        ),
        "multiplied by",
    ),
    "probabilities scaled": (
        lambda q, k, v: (softmax(q @ k.mT) * ADDED) @ v,
        "(aten.mul.Tensor) stands between the softmax and the values",
    ),
    "heads mixed": (
        lambda q, k, v: softmax(functional.conv2d(q @ k.mT, MIXED)) @ v,
        "stands between the scores and the softmax",
    ),
    "a sink among the keys": (
        lambda q, k, v: (
            softmax(torch.cat([q @ k.mT, ADDED[..., :1].expand(2, 3, 5, 1)], -1))[..., :-1] @ v
        ),
        "(aten.slice.Tensor) stands between the softmax and the values",
    ),
    "linear attention": (
        lambda q, k, v: functional.elu(q) @ (functional.elu(k).mT @ v),
        "linear attention",
    ),
    "efficient attention": (
        lambda q, k, v: softmax(q * 1.0) @ (torch.softmax(k * 1.0, -2).mT @ (v * 1.0)),
        "linear attention",
    ),
    "rectified scores": (
        lambda q, k, v: torch.relu((q * 2.0) @ (k * 2.0).mT) @ (v * 2.0),
        "no softmax stands between its two products",
    ),
    "weights returned": (
        with_weights,
        "also used by",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_is_no_plain_attention(name: str) -> None:
    spelling, because = REFUSED[name]

    check_refusal(RecomposeAttention(), Spelled(spelling), because=because, example=QKV)


def test_refuses_a_mask_regrouped_by_a_dynamic_size() -> None:
    rows = torch.export.Dim("rows", min=2, max=64)
    model = Spelled(
        lambda q, k, v: (
            softmax(
                (
                    (q @ k.mT).view(1, 2, 3, q.shape[2], -1) + ADDED[..., :1, :1].view(2, 1, 1, 1)
                ).view(-1, 3, q.shape[2], q.shape[2])
            )
            @ v
        )
    )
    graph = trace(model, QKV, dynamic_shapes=({2: rows},) * 3)

    record = apply_patterns(graph, [RecomposeAttention])

    assert "dynamic size" in str(record.refused[0].reason)


def test_finds_one_attention_in_each_call_of_multihead_attention() -> None:
    class Cross(nn.Module):
        def __init__(self, batch_first: bool) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=False)

        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return self.attention(x, y, y, attn_mask=mask)[0]

    x, y, mask = heads(0, (5, 5, 8)), heads(1, (5, 5, 8)), heads(2, (5, 5))
    for batch_first in (True, False):
        model = Cross(batch_first).eval()
        graph = trace(model, (x, y, mask))

        record = apply_patterns(graph, [RecomposeAttention])
        graph.recompile()

        assert len(record.applied) == 1
        torch.testing.assert_close(graph(x, y, mask), model(x, y, mask))
