import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from embedl_deploy.modules import FusedAttention, ScaledDotProductAttention


def heads(count: int, rows: int, seed: int) -> Tensor:
    return torch.randn(2, count, rows, 4, generator=torch.Generator().manual_seed(seed))


Q, K, V = heads(4, 5, 0), heads(4, 7, 1), heads(4, 7, 2)
BOOLEAN = torch.rand(5, 7, generator=torch.Generator().manual_seed(3)) > 0.3
ADDED = torch.randn(2, 1, 5, 7, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("mask", [None, BOOLEAN, ADDED])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_visible_products_compute_torchs_attention(
    mask: Tensor | None, scale: float | None
) -> None:
    core = ScaledDotProductAttention(scale=scale)
    expected = scaled_dot_product_attention(Q, K, V, mask, scale=scale)

    torch.testing.assert_close(core(Q, K, V, mask), expected)
    torch.testing.assert_close(FusedAttention(core)(Q, K, V, mask), expected)


def test_a_causal_core_sees_no_later_key() -> None:
    core = ScaledDotProductAttention(is_causal=True)
    expected = scaled_dot_product_attention(Q, K, V, is_causal=True)

    torch.testing.assert_close(core(Q, K, V), expected)
    torch.testing.assert_close(FusedAttention(core)(Q, K, V), expected)


def test_grouped_queries_share_keys_and_values() -> None:
    core = ScaledDotProductAttention(enable_gqa=True)
    k, v = K[:, :2], V[:, :2]
    expected = scaled_dot_product_attention(Q, k, v, enable_gqa=True)

    torch.testing.assert_close(core(Q, k, v), expected)
    torch.testing.assert_close(FusedAttention(core)(Q, k, v), expected)


@pytest.mark.parametrize("name", ["query", "key", "value", "probabilities"])
def test_a_quantizer_on_any_operand_takes_part(name: str) -> None:
    core = ScaledDotProductAttention()
    setattr(core, f"{name}_stub", nn.Hardtanh(0.0, 0.2))

    y = FusedAttention(core)(Q, K, V)

    assert not torch.allclose(y, scaled_dot_product_attention(Q, K, V), atol=1e-3)
    torch.testing.assert_close(y, core(Q, K, V), rtol=0, atol=0)


def test_the_repr_shows_only_what_is_set() -> None:
    core = ScaledDotProductAttention(is_causal=True, scale=0.5)

    assert repr(FusedAttention(core)) == "FusedAttention(is_causal=True, scale=0.5)"
    assert repr(ScaledDotProductAttention()) == "ScaledDotProductAttention()"
