"""The rules that the quantizers of a graph have to keep, one function each."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Node

from embedl_deploy.graph.nodes import module_of, source_line
from embedl_deploy.passes.carried_values import op_name, readers
from embedl_deploy.passes.qdq_view import Layer, QdqView, placed
from embedl_deploy.passes.qdq_walks import (
    is_fused,
    is_read_by_quantizer_only,
    reached,
    reads_codes,
    roundings_by_value,
    sources_sharing,
)
from embedl_deploy.quantization.finding import QdqFinding
from embedl_deploy.quantization.placement import Placement


@dataclass(frozen=True)
class Target:
    """What the rules know of the target, and of what was decided on purpose."""

    placement: Placement
    fusions: tuple[str, ...]
    """Names of the target's fusion patterns."""

    reasons: Mapping[str, str]
    """Why operands were left in float, by the name of the node that reads them."""


def half_quantized(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ001: both operands of a layer are in low precision, or a reason says why not."""
    if not view.roundings and not view.inner:
        return  # weights alone are quantized, to save memory
    for layer in view.layers.values():
        if (layer.activation is None) == (layer.weight is None) or _is_excused(layer, target):
            continue
        low, high = ("weight", "activation") if layer.weight else ("activation", "weight")
        yield _finding(
            "QDQ001",
            layer.node,
            f"the {low} is rounded and the {high} is in float: no kernel takes them together, "
            f"quantize the {high} too or leave both alone",
        )


def one_quantizer_per_tensor(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ002: a tensor is rounded once, whoever reads it."""
    del target
    for value, roundings in roundings_by_value(view).items():
        if len(roundings) > 1:
            listed = "; ".join(f"%{item.node.name}: {item}" for item in roundings)
            yield _finding(
                "QDQ002", value, f"{len(roundings)} quantizers read it ({listed}): share one"
            )
        known = view.roundings.get(value)
        for item in roundings:
            if known is not None and item.same_codes(known):
                yield _finding(
                    "QDQ002", item.node, f"%{value.name} was rounded to the same codes already"
                )


def shared_scales(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ003: reshapes, max-pooling and concatenation that read codes keep their scale."""
    del target
    for rounding in view.roundings.values():
        assert rounding.value is not None
        for source in sources_sharing(rounding.value):
            other = view.roundings.get(source)
            if other is not None and not rounding.same_codes(other):
                yield _finding(
                    "QDQ003",
                    rounding.node,
                    f"{rounding}, but %{other.node.name} before the {_kind(rounding.value)} has "
                    f"{other}: the op runs on codes, its ends must share one scale",
                )


def target_formats(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ004: codes have the type and the zero point that the target's kernels take."""
    placement = target.placement
    for rounding in (*view.roundings.values(), *view.inner):
        wanted = placement.activation_dtype
        is_byte = rounding.dtype in (torch.int8, torch.uint8)
        if is_byte and rounding.dtype is not wanted:
            yield _finding(
                "QDQ004", rounding.node, f"activations are {rounding.dtype}, not {wanted}"
            )
        elif placement.symmetric_activations and not rounding.is_symmetric:
            yield _finding(
                "QDQ004",
                rounding.node,
                f"{rounding}: the target takes symmetric activations only",
            )
    for layer in view.layers.values():
        if layer.weight is not None and not layer.weight.is_symmetric:
            yield _finding("QDQ004", layer.node, "the weight has a zero point, kernels take none")


def weight_axes(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ005: a weight has one scale per output channel, one per group of these, or one alone."""
    del target
    for layer in view.layers.values():
        weight = layer.weight
        if weight is None or weight.axis is None:
            continue
        channels = layer.weight_shape[layer.channel_axis] if layer.weight_shape else 0
        wanted = (channels,)
        if weight.group_size is not None and channels:
            wanted = (channels, math.prod(layer.weight_shape) // channels // weight.group_size)
        if weight.axis != layer.channel_axis or weight.scale.shape != wanted:
            yield _finding(
                "QDQ005",
                layer.node,
                f"{weight.scale.numel()} scales along axis {weight.axis} of a weight of shape "
                f"{list(layer.weight_shape)}, whose {channels} output channels lie along axis "
                f"{layer.channel_axis}",
            )


def no_blocked_fusion(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ006: no quantizer stands between a layer and what the target fuses behind it."""
    for rounding in view.roundings.values():
        layer = view.layers.get(rounding.value) if rounding.value is not None else None
        if (
            layer is None
            or not layer.is_bare
            or not is_read_by_quantizer_only(layer.node, rounding)
        ):
            continue
        followers = list(rounding.node.users)
        if len(followers) == 1 and is_fused(layer, followers[0], target.fusions):
            yield _finding(
                "QDQ006",
                rounding.node,
                f"stands between %{layer.node.name} and %{followers[0].name}, which the target "
                "runs as one kernel: quantize what the kernel yields",
            )


def no_float_island(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ007: a layer between layers in low precision is in float for a reason only."""
    low = {n for n, layer in view.layers.items() if layer.activation and layer.weight}
    nodes = list(view.graph_module.graph.nodes)
    after = reached(nodes, low, lambda node: node.all_input_nodes)
    before = reached(nodes[::-1], low, lambda node: list(node.users))
    for node, layer in view.layers.items():
        is_float = layer.activation is None and layer.weight is None
        if is_float and node in after and node in before and not _is_excused(layer, target):
            yield _finding(
                "QDQ007",
                node,
                "runs in float between layers in low precision, and no refusal of the report and "
                "no decision of the target's table says why",
            )


def usable_scales(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ008: scales are positive and finite, and zero points lie inside the codes."""
    del target
    weights = (layer.weight for layer in view.layers.values() if layer.weight is not None)
    for rounding in (*view.roundings.values(), *view.inner, *weights):
        scale, zero_point = rounding.scale, rounding.zero_point
        low, high = rounding.ends
        if not rounding.is_ready:
            yield _finding("QDQ008", rounding.node, "was never calibrated: call calibrate()")
        elif not bool((torch.isfinite(scale) & (scale > 0)).all()):
            yield _finding("QDQ008", rounding.node, "a scale is zero, negative or not finite")
        elif not bool(((zero_point >= low) & (zero_point <= high)).all()):
            yield _finding("QDQ008", rounding.node, f"a zero point lies outside {low} to {high}")


def no_idle_quantizer(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ009: what is rounded is read by something that runs in low precision."""
    del target
    for node, rounding in view.roundings.items():
        found = list(readers(node))
        if not any(reads_codes(reader, view) for reader in found):
            listed = ", ".join(f"%{reader.name}" for reader in found) or "nothing"
            yield _finding(
                "QDQ009", rounding.node, f"is read by {listed} in float: it only loses precision"
            )


def whole_pairs(view: QdqView, target: Target) -> Iterator[QdqFinding]:
    """QDQ010: every quantize is read by a dequantize of the same scale, and the reverse."""
    del target
    for node in view.graph_module.graph.nodes:
        if op_name(node) in ("quantize_per_tensor", "quantize_per_token"):
            for reader in node.users:
                if op_name(reader) != f"de{op_name(node)}":
                    yield _finding("QDQ010", node, f"its codes are read by %{reader.name}")
                elif reader.args[1:6] != node.args[1:6]:
                    yield _finding(
                        "QDQ010",
                        reader,
                        f"reads codes of scale {node.args[1]} and zero point {node.args[2]} as "
                        f"scale {reader.args[1]} and zero point {reader.args[2]}",
                    )


def _is_excused(layer: Layer, target: Target) -> bool:
    return placed(layer.node) in target.reasons


def _kind(node: Node) -> str:
    module = module_of(node)
    return op_name(node) if module is None else type(module).__name__


def _finding(code: str, node: Node, message: str) -> QdqFinding:
    return QdqFinding(code, node.name, message, source_line(node))


RULES = (
    half_quantized,
    one_quantizer_per_tensor,
    shared_scales,
    target_formats,
    weight_axes,
    no_blocked_fusion,
    no_float_island,
    usable_scales,
    no_idle_quantizer,
    whole_pairs,
)
