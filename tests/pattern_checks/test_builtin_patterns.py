"""Every built-in pattern is right on graphs made from its own tree and on near misses."""

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backends.registry import discover_backends
from embedl_deploy.rewriting import Pattern
from embedl_deploy.testing import check_pattern

CHANNELS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """softmax(q kᵀ / 2) v, written by hand."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.transpose(-1, -2)) / 2.0).softmax(-1) @ v


class Product(nn.Module):
    """A matrix product, written as an einsum."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bij,bkj->bik", x, y)


EXAMPLES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "recompose-attention": (Attention(), (CHANNELS, CHANNELS + 1, CHANNELS - 1)),
    "replace-einsum-with-matmul": (Product(), (CHANNELS, CHANNELS + 1)),
}
"""For patterns that match by hand, or whose conditions no made-up graph meets."""

HAVE_TESTS_OF_THEIR_OWN = {
    # Its root yields no tensor.
    "remove-assert",
}


def all_patterns() -> list[type[Pattern]]:
    found = [
        pattern
        for backend in discover_backends().values()
        for patterns in (
            backend.conversion_patterns,
            backend.fusion_patterns,
            backend.quantized_patterns,
        )
        for pattern in patterns
    ]
    chosen = [item for item in dict.fromkeys(found) if item.name not in HAVE_TESTS_OF_THEIR_OWN]
    return sorted(chosen, key=lambda pattern: pattern.name)


@pytest.mark.parametrize("pattern", all_patterns(), ids=lambda pattern: pattern.name)
def test_is_right_wherever_it_applies(pattern: type[Pattern]) -> None:
    backend = discover_backends()["tensorrt"]
    others = (*backend.conversion_patterns, *backend.fusion_patterns)
    example = EXAMPLES.get(pattern.name)

    result = check_pattern(
        pattern, others=others, examples=(example,) if example else (), max_examples=4
    )

    assert result.positives > 0
    assert result.explained_share >= 0.95, result.unexplained
