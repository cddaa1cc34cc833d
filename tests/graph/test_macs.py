import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from embedl_deploy.graph.macs import macs_of, total_macs
from embedl_deploy.patterns.fusion import FuseConvNormActivation, FuseLinearActivation
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.tracing import trace

generator = torch.Generator().manual_seed(0)
IMAGE = torch.randn(2, 4, 10, 8, generator=generator)
TOKENS = torch.randn(2, 5, 8, generator=generator)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return functional.scaled_dot_product_attention(q, k, v)


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, x.transpose(1, 2)) @ x


MODELS = [
    (nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)), IMAGE),
    (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2)), IMAGE),
    (nn.Sequential(nn.Conv1d(5, 3, 3)), TOKENS),
    (nn.Sequential(nn.Linear(8, 3), nn.GELU(), nn.Linear(3, 8)), TOKENS),
    (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), IMAGE),
    (Attention(), TOKENS),
    (Products(), TOKENS),
]


@pytest.mark.parametrize(("model", "example"), MODELS)
def test_counts_what_torch_counts(model: nn.Module, example: Tensor) -> None:
    model.eval()
    counter = FlopCounterMode(display=False)
    # The counter knows the products of attention only where they run one by one.
    with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
        model(example)

    assert total_macs(trace(model, (example,))) * 2 == counter.get_total_flops()


def test_fusion_does_not_change_the_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(6, 3), nn.ReLU()
    ).eval()
    graph_module = trace(model, (IMAGE,))
    before = total_macs(graph_module)

    record = apply_patterns(graph_module, [FuseConvNormActivation, FuseLinearActivation])

    assert len(record.applied) == 2
    assert total_macs(graph_module) == before


def test_dynamic_sizes_count_as_traced() -> None:
    model = nn.Sequential(nn.Linear(8, 3)).eval()
    rows = torch.export.Dim("rows", min=2, max=9)

    graph_module = trace(model, (TOKENS,), dynamic_shapes=({1: rows},))

    assert total_macs(graph_module) == 2 * 5 * 8 * 3


def test_counting_adds_no_guard_to_dynamic_sizes() -> None:
    class OverPast(nn.Module):
        def forward(self, query: Tensor, past: Tensor, new: Tensor) -> Tensor:
            keys = torch.cat([past, new], 1)
            scores = query.transpose(1, 2) @ torch.bmm(query, new.transpose(1, 2))
            return functional.scaled_dot_product_attention(query, keys, keys) + scores.mean()

    length = {1: torch.export.Dim.DYNAMIC}
    shapes = {"query": length, "past": length, "new": length}
    graph = trace(OverPast(), (TOKENS, torch.randn(2, 7, 8), TOKENS), dynamic_shapes=shapes)
    value = graph.graph.find_nodes(op="placeholder")[0].meta["val"]
    guards = value.fake_mode.shape_env.guards
    before = [str(guard.expr) for guard in guards]

    counted = total_macs(graph)

    assert counted == 2 * (2 * 5 * 12 * 8 + 5 * 5 * 8 + 8 * 5 * 5)
    assert [str(guard.expr) for guard in guards] == before


def test_what_multiplies_nothing_counts_nothing() -> None:
    graph_module = trace(nn.Sequential(nn.ReLU(), nn.LayerNorm(8)).eval(), (TOKENS,))

    assert [macs_of(node) for node in graph_module.graph.nodes] == [0, 0, 0, 0]
