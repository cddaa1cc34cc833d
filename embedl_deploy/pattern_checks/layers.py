"""Small instances of the module classes that trees name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from torch import nn

from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules import (
    FusedAttention,
    FusedConv,
    FusedLinear,
    FusedNormLinear,
    LinearAsConv1x1,
    ScaledDotProductAttention,
    fused_conv,
    fused_linear,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Made:
    """A module and the shapes of what it reads beside its first input."""

    module: nn.Module
    others: tuple[Shape, ...] = ()


Maker = Callable[[Shape, Random], Made]

_CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
_BATCH_NORMS: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.SyncBatchNorm: 2,
}
_POOLS: dict[type[nn.Module], int] = {
    nn.MaxPool1d: 1,
    nn.MaxPool2d: 2,
    nn.MaxPool3d: 3,
    nn.AvgPool1d: 1,
    nn.AvgPool2d: 2,
    nn.AvgPool3d: 3,
}
_ADAPTIVE_POOLS: dict[type[nn.Module], int] = {
    nn.AdaptiveAvgPool1d: 1,
    nn.AdaptiveAvgPool2d: 2,
    nn.AdaptiveAvgPool3d: 3,
    nn.AdaptiveMaxPool1d: 1,
    nn.AdaptiveMaxPool2d: 2,
    nn.AdaptiveMaxPool3d: 3,
}


def input_shape(kind: type[nn.Module], random: Random) -> Shape:
    """Returns a shape that a module of class ``kind`` can read."""
    for table in (_CONVOLUTIONS, _BATCH_NORMS, _POOLS, _ADAPTIVE_POOLS):
        if kind in table:
            size = random.choice((1, 4, 6)) if table is _ADAPTIVE_POOLS else 6
            return (2, random.choice((2, 4)), *[size] * table[kind])
    if kind in (FusedConv, LinearAsConv1x1):
        return (2, 4, 6, 6) if kind is FusedConv else (2, 4, 1, 1)
    if kind in (ScaledDotProductAttention, FusedAttention):
        return (2, 2, 5, 4)
    return random.choice(((4, 6), (2, 5, 6), (2, 4, 3, 3)))


def make_layer(kind: type[nn.Module], shape: Shape, random: Random) -> Made:
    """Returns a small module of class ``kind`` for an input of ``shape``.

    Raises:
        TypeError: The class needs arguments that are not known here.
    """
    for table, make in _TABLES:
        if kind in table:
            return make(kind, shape, random)
    maker = _MAKERS.get(kind)
    return maker(shape, random) if maker is not None else Made(kind())


def _convolution(kind: type[nn.Module], shape: Shape, random: Random) -> Made:
    channels = shape[1]
    return Made(
        kind(
            channels,
            random.choice((channels, 4, 6)),
            random.choice((1, 3)),
            padding=random.choice((0, 1)),
            stride=random.choice((1, 1, 2)),
            bias=random.choice((True, False)),
        )
    )


def _same_size_convolution(shape: Shape, random: Random) -> nn.Conv2d:
    return nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=random.choice((True, False)))


def _batch_norm(kind: type[nn.Module], shape: Shape, random: Random) -> Made:
    return Made(kind(shape[1], eps=random.choice((1e-5, 1e-3))))


def _pool(kind: type[nn.Module], shape: Shape, random: Random) -> Made:
    del shape
    return Made(kind(random.choice((1, 2))))


def _adaptive_pool(kind: type[nn.Module], shape: Shape, random: Random) -> Made:
    return Made(kind(random.choice((1, shape[-1]))))


def _linear(shape: Shape, random: Random) -> Made:
    bias = random.choice((True, False))
    return Made(nn.Linear(shape[-1], random.choice((4, 6)), bias=bias))


def _transposed_linear(shape: Shape, random: Random) -> Made:
    return Made(TransposedLinear(shape[-1], random.choice((4, 6))))


def _fused_conv(shape: Shape, random: Random) -> Made:
    conv = _same_size_convolution(shape, random)
    norm = random.choice((None, nn.BatchNorm2d(shape[1])))
    act = random.choice((None, nn.ReLU(), nn.SiLU()))
    adds = random.choice((True, False)) or (norm is None and act is None)
    fused = fused_conv(conv, norm, act, adds_residual=adds)
    return Made(fused, (shape,) if adds else ())


def _fused_linear(shape: Shape, random: Random) -> Made:
    return Made(fused_linear(nn.Linear(shape[-1], 4), random.choice((nn.ReLU(), nn.GELU()))))


def _fused_norm_linear(shape: Shape, random: Random) -> Made:
    del random
    return Made(FusedNormLinear(nn.LayerNorm(shape[-1]), nn.Linear(shape[-1], 4)))


def _attention(shape: Shape, random: Random) -> Made:
    return Made(ScaledDotProductAttention(is_causal=random.choice((True, False))), (shape, shape))


def _fused_attention(shape: Shape, random: Random) -> Made:
    core = _attention(shape, random)
    assert isinstance(core.module, ScaledDotProductAttention), "made just above"
    return Made(FusedAttention(core.module), core.others)


_TABLES: Sequence[
    tuple[
        dict[type[nn.Module], int],
        Callable[[type[nn.Module], Shape, Random], Made],
    ]
] = (
    (_CONVOLUTIONS, _convolution),
    (_BATCH_NORMS, _batch_norm),
    (_POOLS, _pool),
    (_ADAPTIVE_POOLS, _adaptive_pool),
)

_MAKERS: dict[type[nn.Module], Maker] = {
    nn.Linear: _linear,
    TransposedLinear: _transposed_linear,
    nn.LayerNorm: lambda shape, _: Made(nn.LayerNorm(shape[-1])),
    nn.RMSNorm: lambda shape, _: Made(nn.RMSNorm(shape[-1])),
    nn.GroupNorm: lambda shape, _: Made(nn.GroupNorm(1, shape[1])),
    nn.PReLU: lambda _, random: Made(nn.PReLU(init=random.choice((0.1, 0.25)))),
    nn.Softmax: lambda _, random: Made(nn.Softmax(dim=random.choice((-1, 1)))),
    FusedConv: _fused_conv,
    FusedLinear: _fused_linear,
    FusedNormLinear: _fused_norm_linear,
    LinearAsConv1x1: lambda shape, _: Made(LinearAsConv1x1(nn.Linear(shape[1], 4))),
    ScaledDotProductAttention: _attention,
    FusedAttention: _fused_attention,
}
