"""Small models that use torch's own layers, or spell blocks as papers do."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.inputs import noise

_ROWS = noise(2, 6, 16)
_OTHERS = noise(2, 5, 16)
_IMAGE = noise(2, 3, 16, 16)
_LATER = torch.ones(6, 6, dtype=torch.bool).triu(1)
_PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


class Transformer(nn.Module):
    """torch's own encoder and decoder."""

    def __init__(self, activation: str, norm_first: bool) -> None:
        super().__init__()
        self.body = nn.Transformer(
            16, 4, 2, 2, 32, activation=activation, norm_first=norm_first, batch_first=True
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.body(
            source,
            target,
            tgt_mask=_LATER,
            src_key_padding_mask=_PADDED,
            memory_key_padding_mask=_PADDED,
            tgt_is_causal=True,
        )


class Attends(nn.Module):
    """``nn.MultiheadAttention`` between two sequences, with a feed-forward layer after it."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, **options)
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attended, _ = self.attention(queries, keys, values)
        return attended + self.feed(attended)


class GroupedQueries(nn.Module):
    """Llama's block: RMS norms, rotary positions, shared keys, a gated feed-forward layer."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after = nn.RMSNorm(16), nn.RMSNorm(16)
        self.q, self.kv, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.gate, self.up, self.down = nn.Linear(16, 40), nn.Linear(16, 40), nn.Linear(40, 16)
        self.activation = gate
        angles = torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.1]))
        self.register_buffer("turns", torch.cat([angles, angles], -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q = self._turned(self.q(y).view(2, 6, 4, 4).transpose(1, 2))
        k, v = self.kv(y).view(2, 6, 4, 4).transpose(1, 2).chunk(2, 1)
        y = functional.scaled_dot_product_attention(
            q, self._turned(k), v, is_causal=True, enable_gqa=True
        )
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.after(x)
        return x + self.down(self.activation(self.gate(y)) * self.up(y))

    def _turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        turns = self.get_buffer("turns")
        return x * turns.cos() + torch.cat([-second, first], -1) * turns.sin()


class Blocks(nn.Module):
    """Shuffled channels, squeeze and excitation, layer scale, norms of groups and of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.left = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(
            nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8), nn.BatchNorm2d(8), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.norm, self.scale = nn.GroupNorm(4, 16), nn.Parameter(torch.full((16, 1, 1), 0.1))
        self.rows = nn.LayerNorm(16)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.up_norm = nn.BatchNorm2d(8)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.silu(self.stem(image))
        left, right = x.chunk(2, 1)
        x = torch.cat([self.left(left), self.deep(right)], 1)
        x = x.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = x + self.scale * self.norm(x)
        x = self.rows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return functional.leaky_relu(self.up_norm(self.up(x)))


class OtherDimensions(nn.Module):
    """Convolutions over sequences and volumes, forth and back."""

    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Sequential(
            nn.Conv1d(3, 8, 5, 2, 2),
            nn.BatchNorm1d(8),
            nn.ELU(),
            nn.ConvTranspose1d(8, 3, 4, 2, 1),
            nn.BatchNorm1d(3),
        )
        self.volume = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.PReLU(4),
            nn.MaxPool3d(2),
            nn.ConvTranspose3d(4, 2, 2, 2, bias=False),
            nn.BatchNorm3d(2),
            nn.ReLU(),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.wave(image.flatten(2)), self.volume(image[:, None, :2])


class Deforms(nn.Module):
    """Samples where a convolution says, as deformable attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.offsets = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, image: Tensor) -> Tensor:
        values = functional.relu(self.norm(self.values(image)))
        places = self.offsets(image).tanh().permute(0, 2, 3, 1)
        return functional.grid_sample(values, places, align_corners=False)


class Recurrent(nn.Module):
    """A recurrent net between linear layers, twice the same one."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(16, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        once = self.head(self.recurrent(x)[0])
        return self.head(self.recurrent(once)[0]) + once


WRITTEN: Mapping[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "transformer": (lambda: Transformer("relu", False), (_OTHERS, _ROWS)),
    "transformer_norm_first": (lambda: Transformer("gelu", True), (_OTHERS, _ROWS)),
    "attention": (lambda: Attends(), (noise(6, 2, 16), noise(5, 2, 16), noise(5, 2, 16))),
    "attention_batch_first": (
        lambda: Attends(batch_first=True, bias=False),
        (_ROWS, _OTHERS, _OTHERS),
    ),
    "attention_other_widths": (
        lambda: Attends(batch_first=True, kdim=8, vdim=12, add_bias_kv=True),
        (_ROWS, noise(2, 5, 8), noise(2, 5, 12)),
    ),
    "swiglu": (lambda: GroupedQueries(functional.silu), (_ROWS,)),
    "geglu": (lambda: GroupedQueries(functional.gelu), (_ROWS,)),
    "blocks": (Blocks, (_IMAGE,)),
    "other_dimensions": (OtherDimensions, (_IMAGE,)),
    "deforms": (Deforms, (_IMAGE,)),
    "recurrent": (Recurrent, (_ROWS,)),
}
