"""Removes pooling whose windows hold one element."""

from torch import nn
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of, shape_of
from embedl_deploy.patterns.shapes import same_shape
from embedl_deploy.rewriting import Chain, Op, Pattern, PatternMatch, Phase

_ADAPTIVE_POOLS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
_WINDOWED_POOLS = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)


def _keeps_shape(node: Node) -> bool:
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    return before is not None and after is not None and same_shape(before, after)


def _has_windows_of_one(node: Node) -> bool:
    module = module_of(node)
    if not isinstance(module, _WINDOWED_POOLS) or not _keeps_shape(node):
        return False
    is_scaled = getattr(module, "divisor_override", None) not in (None, 1)
    return set(_sizes(module.kernel_size)) == {1} and not is_scaled


def _sizes(size: object) -> tuple[object, ...]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size,)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # torch leaves it untyped


class RemoveIdentityPool(Pattern):
    """Removes adaptive pooling to the size that is there, and pooling over 1×1 windows. Exact."""

    phase = Phase.CONVERSION
    tree = Chain(
        pool=(
            *(Op(kind, where=_keeps_shape) for kind in _ADAPTIVE_POOLS),
            *(Op(kind, where=_has_windows_of_one) for kind in _WINDOWED_POOLS),
        )
    )

    def replace(self, match: PatternMatch) -> Node:
        return match.root.all_input_nodes[0]
