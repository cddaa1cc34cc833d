import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from embedl_deploy.modules import ScaledDotProductAttention
from embedl_deploy.patterns import DecomposeAttention
from embedl_deploy.testing import check_rewrite


def heads(count: int, seed: int) -> Tensor:
    return torch.randn(2, count, 5, 4, generator=torch.Generator().manual_seed(seed))


class Attention(nn.Module):
    """Calls torch's function with options."""

    def __init__(self, **options: float | bool) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return scaled_dot_product_attention(q, k, v, mask, **self.options)  # pyright: ignore[reportArgumentType]  # options by name


class Expected(nn.Module):
    """Calls the module with visible products."""

    def __init__(self, core: ScaledDotProductAttention) -> None:
        super().__init__()
        self.core = core

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = self.core(q, k, v)
        return y


class ExpectedMasked(nn.Module):
    """The same with a mask."""

    def __init__(self, core: ScaledDotProductAttention) -> None:
        super().__init__()
        self.core = core

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.core(q, k, v, mask)
        return y


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_makes_the_products_visible(options: dict[str, float | bool]) -> None:
    check_rewrite(
        DecomposeAttention(),
        before=Attention(**options),
        expected=Expected(ScaledDotProductAttention(**options)),  # pyright: ignore[reportArgumentType]  # options by name
        example=(heads(4, 0), heads(4, 1), heads(4, 2)),
        relative=1e-5,
    )


def test_keeps_grouped_queries() -> None:
    check_rewrite(
        DecomposeAttention(),
        before=Attention(enable_gqa=True),
        expected=Expected(ScaledDotProductAttention(enable_gqa=True)),
        example=(heads(4, 0), heads(2, 1), heads(2, 2)),
    )


@pytest.mark.parametrize("mask", [torch.randn(5, 5), torch.ones(5, 5, dtype=torch.bool).tril()])
def test_keeps_the_mask(mask: Tensor) -> None:
    check_rewrite(
        DecomposeAttention(),
        before=Attention(),
        expected=ExpectedMasked(ScaledDotProductAttention()),
        example=(heads(4, 0), heads(4, 1), heads(4, 2), mask),
    )
