import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from embedl_deploy.graph import graph_text
from embedl_deploy.patterns import DecomposeAttention, FuseAttention
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.tracing import trace

Q = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Attends with a mask."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return scaled_dot_product_attention(x, x, x * 2, mask)


def test_wraps_the_visible_products() -> None:
    mask = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    graph = trace(Attention(), (Q, mask))
    apply_patterns(graph, [DecomposeAttention])

    record = apply_patterns(graph, [FuseAttention])
    graph.recompile()

    assert [site.pattern for site in record.applied] == ["fuse-attention"]
    assert "FusedAttention()[fused_attention](%x, %x, %mul, %mask)" in graph_text(graph)
    torch.testing.assert_close(graph(Q, mask), Attention()(Q, mask))
