"""Attention between given queries, keys and values, as products or as one kernel."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.modules.fused import Fused


class ScaledDotProductAttention(nn.Module):
    """Computes ``softmax(scale · q kᵀ + mask) v`` with both products visible.

    The arguments are those of ``torch.nn.functional.scaled_dot_product_attention``. With
    ``enable_gqa`` the keys and values have fewer heads, each shared by a group of query heads.
    Dropout acts in training mode only. A query that may see no key at all attends to nothing: 0.

    Source: Vaswani et al. 2017, equation 1, https://arxiv.org/abs/1706.03762
    """

    query_stub: Callable[[Tensor], Tensor] | None
    key_stub: Callable[[Tensor], Tensor] | None
    value_stub: Callable[[Tensor], Tensor] | None
    probabilities_stub: Callable[[Tensor], Tensor] | None
    """Quantizers of the products' operands, as registered children; ``None`` leaves float."""

    def __init__(
        self,
        is_causal: bool = False,
        scale: float | None = None,
        dropout_p: float = 0.0,
        enable_gqa: bool = False,
    ) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.scale = scale
        self.dropout_p = dropout_p
        self.enable_gqa = enable_gqa
        self.query_stub = None
        self.key_stub = None
        self.value_stub = None
        self.probabilities_stub = None

    @property
    def is_quantized(self) -> bool:
        """Whether an operand of a product has a quantizer."""
        stubs = (self.query_stub, self.key_stub, self.value_stub, self.probabilities_stub)
        return any(stub is not None for stub in stubs)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the attended values.

        Args:
            q: Queries, shape (..., queries, head size).
            k: Keys, shape (..., keys, head size).
            v: Values, shape (..., keys, value size).
            mask: Broadcasts to (..., queries, keys): added to the scores, or, if boolean, False
                where a query must not see a key.
        """
        if self.enable_gqa:
            k, v = _repeat_heads(q, k), _repeat_heads(q, v)
        scale = 1.0 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
        scores = _quantized(self.query_stub, q) @ _quantized(self.key_stub, k).transpose(-2, -1)
        scores = _masked(scores * scale, mask, self.is_causal)
        probabilities = _probabilities(scores, mask is not None)
        probabilities = functional.dropout(probabilities, self.dropout_p, self.training)
        return _quantized(self.probabilities_stub, probabilities) @ _quantized(self.value_stub, v)

    def extra_repr(self) -> str:
        shown = {
            "is_causal": self.is_causal or None,
            "scale": self.scale,
            "dropout_p": self.dropout_p or None,
            "enable_gqa": self.enable_gqa or None,
        }
        return ", ".join(f"{name}={value}" for name, value in shown.items() if value is not None)


class FusedAttention(Fused):
    """Runs a ``ScaledDotProductAttention`` as one kernel while its products stay in float.

    With quantizers on the products it runs them one by one, as the quantized target will.
    """

    attention: ScaledDotProductAttention

    def __init__(self, attention: ScaledDotProductAttention) -> None:
        super().__init__()
        self._hold(attention=attention)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the attended values; arguments as of ``ScaledDotProductAttention``."""
        core = self.attention
        if core.is_quantized:
            attended: Tensor = core(q, k, v, mask)
            return attended
        return functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=core.dropout_p if core.training else 0.0,
            is_causal=core.is_causal,
            scale=core.scale,
            enable_gqa=core.enable_gqa,
        )

    def extra_repr(self) -> str:
        return self.attention.extra_repr()


def _quantized(stub: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    return x if stub is None else stub(x)


def _repeat_heads(q: Tensor, shared: Tensor) -> Tensor:
    """Returns ``shared`` with each head repeated for the query heads that read it."""
    return shared.repeat_interleave(q.shape[-3] // shared.shape[-3], dim=-3)


def _probabilities(scores: Tensor, may_see_nothing: bool) -> Tensor:
    """Returns the softmax over keys, zero rather than NaN where every key is masked."""
    probabilities = torch.softmax(scores, -1)
    if not may_see_nothing:
        return probabilities
    sees_nothing = (scores == -math.inf).all(-1, keepdim=True)
    return probabilities.masked_fill(sees_nothing, 0.0)


def _masked(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    if is_causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~visible, -math.inf)
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -math.inf)
    return scores + mask
