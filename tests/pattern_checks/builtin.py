"""The built-in patterns, and models in which those fit that no made-up graph meets."""

import torch
from torch import Tensor, nn

from embedl_deploy.backends.registry import discover_backends
from embedl_deploy.patterns import FuseNormLinear, RemoveDropout
from embedl_deploy.rewriting import Pattern

CHANNELS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """softmax(q kᵀ / 2) v, written by hand."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.transpose(-1, -2)) / 2.0).softmax(-1) @ v


class Product(nn.Module):
    """A matrix product, written as an einsum."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bij,bkj->bik", x, y)


class WeightProduct(nn.Module):
    """A product with a parameter for each head, written as an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Parameter(torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bih,hnd->bind", x, self.heads)


EXAMPLES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "move-outliers-into-linears": (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5)), (CHANNELS,)),
    "scale-before-linears": (nn.Sequential(nn.GELU(), nn.Linear(4, 5)), (CHANNELS,)),
    "recompose-attention": (Attention(), (CHANNELS, CHANNELS + 1, CHANNELS - 1)),
    "replace-einsum-with-matmul": (Product(), (CHANNELS, CHANNELS + 1)),
    "replace-product-with-linear": (WeightProduct(), (CHANNELS,)),
}
"""For patterns that match by hand, or whose conditions no made-up graph meets."""

HAVE_TESTS_OF_THEIR_OWN = frozenset({"remove-assert"})
"""Its root yields no tensor."""


def all_patterns() -> list[type[Pattern]]:
    """Returns every public pattern that can be checked on small graphs, by name."""
    found = [
        pattern
        for backend in discover_backends().values()
        for patterns in (
            backend.conversion_patterns,
            backend.fusion_patterns,
            backend.smooth_patterns,
            backend.quantized_patterns,
        )
        for pattern in patterns
    ]
    found += [RemoveDropout, FuseNormLinear]  # public, though no table lists them
    chosen = [item for item in dict.fromkeys(found) if item.name not in HAVE_TESTS_OF_THEIR_OWN]
    return sorted(chosen, key=lambda pattern: pattern.name)
