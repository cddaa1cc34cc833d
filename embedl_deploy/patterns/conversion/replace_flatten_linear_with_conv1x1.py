"""Spells a linear head on a pooled image as a 1×1 convolution."""

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import is_call, module_of, shape_of
from embedl_deploy.modules import LinearAsConv1x1
from embedl_deploy.modules.kinds import ACTIVATIONS
from embedl_deploy.patterns.shapes import is_one, same_shape
from embedl_deploy.rewriting import Chain, Maybe, Op, Pattern, PatternMatch, Phase, Refusal

_ATEN = torch.ops.aten


def _drops_positions(node: Node) -> bool:
    """Tells whether (batch, channels, height, width) becomes (batch, channels × positions)."""
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if before is None or after is None or len(before) != 4 or len(after) != 2:
        return False
    return same_shape(before[:1], after[:1])


def _averages_positions(node: Node) -> bool:
    """Tells whether an image is averaged to one value per channel."""
    if not _drops_positions(node) or not isinstance(node.args[1], (list, tuple)):
        return False
    return sorted(int(str(dim)) % 4 for dim in node.args[1]) == [2, 3]


class ReplaceFlattenLinearWithConv1x1(Pattern):
    """Replaces ``linear(flatten(x))`` by ``flatten(conv1x1(x))`` where x is (batch, in, 1, 1).

    Also takes ``linear(x.mean([2, 3]))``, and dropout between the two. Exact: the convolution's
    kernel is a view of the linear layer's own weight.
    """

    phase = Phase.CONVERSION
    tree = Chain(
        flatten=(
            Op(nn.Flatten, where=_drops_positions),
            Op(_ATEN.flatten.using_ints, where=_drops_positions),
            Op(_ATEN.view.default, where=_drops_positions),
            Op(_ATEN.reshape.default, where=_drops_positions),
            Op(_ATEN.squeeze.dims, where=_drops_positions),
            Op(_ATEN.mean.dim, where=_averages_positions),
        ),
        dropout=Maybe(nn.Dropout),  # those of channels do something else on an image
        linear=nn.Linear,
    )

    def check(self, match: PatternMatch) -> Refusal | None:
        shape = shape_of(match["flatten"].all_input_nodes[0])
        assert shape is not None
        is_mean = is_call(match["flatten"], _ATEN.mean.dim)
        if not is_mean and not (is_one(shape[2]) and is_one(shape[3])):
            return Refusal(
                f"the image that is flattened is {shape[2]}×{shape[3]}, not 1×1", match["flatten"]
            )
        for reader in match.root.users:
            if isinstance(module_of(reader), ACTIVATIONS):
                return Refusal(f"%{reader.name} activates it: the two run as one", reader)
        return None

    def replace(self, match: PatternMatch) -> Node:
        image = match["flatten"].all_input_nodes[0]
        if is_call(match["flatten"], _ATEN.mean.dim):
            image = match.call_function(_ATEN.mean.dim, image, [2, 3], True)
        if "dropout" in match:
            image = match.call_module(match.module("dropout", nn.Module), image)
        scores = match.call_module(LinearAsConv1x1(match.module("linear", nn.Linear)), image)
        return match.call_function(_ATEN.flatten.using_ints, scores, 1)
