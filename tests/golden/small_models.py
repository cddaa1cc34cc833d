"""Small whole models, one per family, whose printed graphs are kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv_norm(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """Two convolutions and a skip, the operands of the add in the order of ``skip_first``."""

    def __init__(self, inputs: int, outputs: int, stride: int, skip_first: bool) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs, stride=stride)
        self.second = _conv_norm(outputs, outputs)
        self.skip = _conv_norm(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()
        self.skip_first = skip_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(functional.relu(self.first(x)))
        skip = self.skip(x)
        return functional.relu(skip + y if self.skip_first else y + skip)


class ResidualNet(nn.Module):
    """A ResNet of two blocks with stem, pool and head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm(3, 8, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1, True), ResidualBlock(8, 16, 2, False))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class SqueezeExcite(nn.Module):
    """Scales channels by a gate computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 4, 1)
        self.up = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = functional.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * functional.hardsigmoid(self.up(gate))


class DepthwiseNet(nn.Module):
    """An inverted residual with hard-swish and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(*_conv_norm(3, 12, 1), nn.Hardswish())
        self.depthwise = nn.Sequential(*_conv_norm(12, 12, groups=12), nn.Hardswish())
        self.excite = SqueezeExcite(12)
        self.project = _conv_norm(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.excite(self.depthwise(self.expand(x))))


class Encoder(nn.Module):
    """Token embedding, one transformer encoder layer with a padding mask, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm_in = nn.LayerNorm(16)
        self.norm_out = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.tokens(ids)
        y = self.norm_in(x)
        attended, _ = self.attention(y, y, y, key_padding_mask=~mask, need_weights=False)
        x = x + self.dropout(attended)
        x = x + self.dropout(self.down(functional.gelu(self.up(self.norm_out(x)))))
        return {"hidden": x, "logits": self.head(x)}


class Decoder(nn.Module):
    """One causal layer: hand-written attention from a fused QKV product, and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_in = nn.RMSNorm(16)
        self.qkv = nn.Linear(16, 48, bias=False)
        self.out = nn.Linear(16, 16, bias=False)
        self.norm_out = nn.RMSNorm(16)
        self.gate = nn.Linear(16, 32, bias=False)
        self.up = nn.Linear(16, 32, bias=False)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm_in(x)).view(batch, length, 3, 4, width // 4)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (width // 4) ** -0.5
        hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        attended = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        y = self.norm_out(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


@dataclass(frozen=True)
class Case:
    """A model and its example inputs."""

    build: Callable[[], nn.Module]
    args: tuple[Tensor, ...]


IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(16).reshape(2, 8)

CASES: Mapping[str, Case] = {
    "residual_net": Case(ResidualNet, (IMAGE,)),
    "depthwise_net": Case(DepthwiseNet, (IMAGE,)),
    "encoder": Case(Encoder, (IDS, torch.ones(2, 8, dtype=torch.bool))),
    "decoder": Case(Decoder, (torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)),)),
}
