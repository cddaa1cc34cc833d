"""Layers of ``torch.nn`` that tracing never leaves as layers, and what becomes of each."""

from collections.abc import Mapping

from torch import nn

_PAD = "torch.ops.aten.pad.default"
_SEE = "the ops that graph_text() shows for it"

LAYER_OPS: Mapping[type[nn.Module], str] = {
    nn.Softmax: "torch.ops.aten.softmax.int",
    nn.Softmax2d: "torch.ops.aten.softmax.int",
    nn.LogSoftmax: "torch.ops.aten.log_softmax.int",
    nn.Flatten: "torch.ops.aten.flatten.using_ints",
    nn.Unflatten: "torch.ops.aten.unflatten.int",
    nn.PixelShuffle: "torch.ops.aten.pixel_shuffle.default",
    nn.PixelUnshuffle: "torch.ops.aten.pixel_unshuffle.default",
    nn.ChannelShuffle: "torch.ops.aten.channel_shuffle.default",
    nn.Fold: "torch.ops.aten.col2im.default",
    nn.Unfold: "torch.ops.aten.im2col.default",
    nn.ZeroPad1d: _PAD,
    nn.ZeroPad2d: _PAD,
    nn.ZeroPad3d: _PAD,
    nn.ConstantPad1d: _PAD,
    nn.ConstantPad2d: _PAD,
    nn.ConstantPad3d: _PAD,
    nn.ReflectionPad1d: _PAD,
    nn.ReflectionPad2d: _PAD,
    nn.ReflectionPad3d: _PAD,
    nn.ReplicationPad1d: _PAD,
    nn.ReplicationPad2d: _PAD,
    nn.ReplicationPad3d: _PAD,
    nn.CircularPad1d: _PAD,
    nn.CircularPad2d: _PAD,
    nn.CircularPad3d: _PAD,
    nn.Upsample: "torch.ops.aten.upsample_nearest2d.vec, or the op of its mode and rank",
    nn.UpsamplingNearest2d: "torch.ops.aten.upsample_nearest2d.vec",
    nn.UpsamplingBilinear2d: "torch.ops.aten.upsample_bilinear2d.vec",
    nn.Bilinear: "torch.ops.aten.bilinear.default",
    nn.EmbeddingBag: "torch.ops.aten.embedding_bag.padding_idx",
    nn.CosineSimilarity: "torch.ops.aten.cosine_similarity.default",
    nn.PairwiseDistance: "torch.ops.aten.pairwise_distance.default",
    nn.LSTM: "torch.ops.aten.lstm.input",
    nn.GRU: "torch.ops.aten.gru.input",
    nn.RNN: "torch.ops.aten.rnn_tanh.input, or rnn_relu.input",
    nn.MSELoss: "torch.ops.aten.mse_loss.default",
    nn.L1Loss: "torch.ops.aten.l1_loss.default",
    nn.CrossEntropyLoss: "torch.ops.aten.cross_entropy_loss.default",
    nn.Softmin: _SEE,
    nn.Softsign: _SEE,
    nn.Tanhshrink: _SEE,
    nn.LocalResponseNorm: _SEE,
    nn.LPPool2d: _SEE,
    nn.MultiheadAttention: _SEE,
}
"""What to write in a tree in place of each."""

_UNFOLDED = tuple(f"torch.nn.modules.{name}" for name in ("loss", "rnn", "transformer"))
"""Modules whose other layers become several ops, too."""


def in_place_of_layer(target: object) -> str | None:
    """Returns what a tree should say in place of a layer that no traced graph holds."""
    if not isinstance(target, type):
        return None
    if target is nn.Identity:
        return "tracing leaves no node of an Identity: take it out of the tree"
    wanted = LAYER_OPS.get(target, _SEE if target.__module__ in _UNFOLDED else None)
    if wanted is None:
        return None
    return f"tracing makes no layer of {target.__name__}: write {wanted}"
