"""``nn.MultiheadAttention`` as it is called, from the model to one fused module."""

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedAttention
from embedl_deploy.testing import randomize
from embedl_deploy.transformation import TransformationResult, transform

MASK = torch.randn(5, 5, generator=torch.Generator().manual_seed(5))
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False, False, False, True, True], [False, False, False, False, True]])


def rows(seed: int, batch_first: bool, width: int = 8) -> Tensor:
    shape = (2, 5, width) if batch_first else (5, 2, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Calls(nn.Module):
    """Calls attention on its inputs, one to three of them."""

    def __init__(self, attention: nn.MultiheadAttention, **options: object) -> None:
        super().__init__()
        self.attention = attention
        self.options = options

    def forward(self, *inputs: Tensor) -> Tensor:
        q, k, v = (inputs * 3)[:3] if len(inputs) == 1 else (inputs[0], inputs[1], inputs[-1])
        attended: Tensor = self.attention(q, k, v, **self.options)[0]
        return attended


def transformed(model: Calls, inputs: tuple[Tensor, ...]) -> TransformationResult:
    randomize(model.eval())
    result = transform(model, inputs, backend="tensorrt", verify=True)
    assert not [site for site in result.report.refusals() if "rolled back" in str(site)]
    torch.testing.assert_close(result.model(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
    return result


def fused_attentions(result: TransformationResult) -> int:
    return sum(isinstance(module, FusedAttention) for module in result.model.modules())


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "without weights": {"need_weights": False},
    "added mask": {"attn_mask": MASK},
    "boolean mask": {"attn_mask": LATER},
    "boolean mask, without weights": {"attn_mask": LATER, "need_weights": False},
    "padding": {"key_padding_mask": PADDED},
    "padding and mask": {"key_padding_mask": PADDED, "attn_mask": LATER},
    "causal": {"attn_mask": LATER, "is_causal": True, "need_weights": False},
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_fuses_self_attention(name: str, batch_first: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    result = transformed(Calls(attention, **OPTIONS[name]), (rows(0, batch_first),))

    assert fused_attentions(result) == 1


@pytest.mark.parametrize("name", ["plain", "without weights", "padding"])
def test_fuses_cross_attention_with_projections_cut_from_one_weight(name: str) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    result = transformed(Calls(attention, **OPTIONS[name]), (rows(0, True), rows(1, True)))

    assert fused_attentions(result) == 1


def test_fuses_cross_attention_with_projections_of_their_own() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=4, bias=False)
    inputs = (rows(0, True), rows(1, True, 6), rows(2, True, 4))

    result = transformed(Calls(attention), inputs)

    assert fused_attentions(result) == 1


@pytest.mark.parametrize("need_weights", [True, False])
def test_fuses_attention_with_a_learnt_row_of_keys(need_weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)

    result = transformed(Calls(attention, need_weights=need_weights), (rows(0, True),))

    assert fused_attentions(result) == 1


@pytest.mark.parametrize("need_weights", [True, False])
def test_refuses_a_row_of_zero_keys(need_weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True)

    result = transformed(Calls(attention, need_weights=need_weights), (rows(0, True),))

    assert fused_attentions(result) == 0
    assert "add_zero_attn=True" in " ".join(str(site) for site in result.report.refusals())


def test_fuses_an_encoder_and_a_decoder_layer() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            seen: Tensor = self.decoder(y, self.encoder(x), tgt_mask=LATER)
            return seen

    model, inputs = Both().eval(), (rows(0, True), rows(1, True))

    result = transform(model, inputs, backend="tensorrt", verify=True)

    assert fused_attentions(result) == 3
    assert result.report.counts()["fuse-linear-activation"] == 2
    torch.testing.assert_close(result.model(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
