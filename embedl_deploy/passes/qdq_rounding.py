"""One quantizer, whether it is a module, a pair of operations, or the codes of a weight."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import dtype_of, graph_module_of, shape_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.carried_values import op_name
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

_GROUPS = "dequantize_per_channel_group"


@dataclass(frozen=True)
class Rounding:
    """One quantizer: where it stands and the codes that it rounds to."""

    node: Node
    """The node that yields the rounded tensor, or the layer that holds the quantizer."""

    value: Node | None
    """The tensor it rounds; None for weights and for tensors inside a module."""

    scale: Tensor
    zero_point: Tensor
    ends: tuple[float, float]
    dtype: torch.dtype
    axis: int | None = None
    is_ready: bool = True
    """Whether calibration gave it a scale."""

    group_size: int | None = None
    """Weights per scale, for a weight in groups; its scale is (outputs, groups per output)."""

    dynamic: bool = False
    """Whether the scale is computed at run time; the one here is then no more than a place."""

    @property
    def is_symmetric(self) -> bool:
        """Tells whether the code of zero is the middle one, or the lowest of an unsigned range."""
        middle = 0 if self.dtype.is_floating_point else int(sum(self.ends) + 1) // 2
        is_symmetric = self.zero_point == middle
        if self.dtype is torch.uint8:
            is_symmetric |= self.zero_point == int(self.ends[0])
        return bool(is_symmetric.all())

    def same_codes(self, other: "Rounding") -> bool:
        """Tells whether both round alike."""
        mine = (self.ends, self.dtype, self.is_ready, self.dynamic)
        if mine != (other.ends, other.dtype, other.is_ready, other.dynamic):
            return False
        if not self.is_ready:
            return self.scale is other.scale
        return torch.equal(self.scale, other.scale) and torch.equal(
            self.zero_point.long(), other.zero_point.long()
        )

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        if self.dynamic:
            return f"{kind}, scaled at run time"
        if self.group_size is not None:
            return f"{kind}, {self.scale.numel()} scales for groups of {self.group_size}"
        if self.scale.numel() != 1:
            return f"{kind}, {self.scale.numel()} scales along axis {self.axis}"
        return f"{kind}, scale {float(self.scale):.4g}, zero point {int(self.zero_point)}"


def rounding_of_stub(stub: QuantStub, node: Node, value: Node | None) -> Rounding:
    """Returns that of a stub.

    Args:
        stub: In a fake-quantized graph.
        node: Runs it, alone or inside a module.
        value: What it rounds, ``None`` inside a module.
    """
    grid = stub.grid
    return Rounding(
        node,
        value,
        stub.scale,
        stub.zero_point,
        (grid.quant_min, grid.quant_max),
        grid.dtype,
        is_ready=stub.quantizing,
        dynamic=stub.config.dynamic is not None,
    )


def rounding_of_weight(
    quantizer: WeightFakeQuantize, node: Node, module: WeightedFused
) -> Rounding:
    """Returns that of the weight of ``module``, which ``node`` runs."""
    grid = quantizer.grid
    scale = quantizer.scale
    if not quantizer.frozen:
        scale = quantizer.scale_of(module.folded_weight_and_bias()[0])
    ends = (grid.quant_min, grid.quant_max)
    return Rounding(
        node,
        None,
        scale,
        quantizer.zero_point,
        ends,
        grid.dtype,
        quantizer.axis,
        group_size=quantizer.config.group_size,
    )


def rounding_of_pair(node: Node) -> Rounding | None:
    """Returns the quantizer that ends in ``node``; None if codes do not become values there."""
    if op_name(node) == "mul":
        return _of_float8(node)
    if op_name(node) not in ("dequantize_per_tensor", "dequantize_per_token"):
        return None
    codes = node.all_input_nodes[0]
    if f"de{op_name(codes)}" != op_name(node):
        return None
    scale, zero_point, low, high, dtype = codes.args[1:6]
    ends = (float(cast("int", low)), float(cast("int", high)))
    value = codes.all_input_nodes[0]
    if dynamic := isinstance(scale, Node):
        scale, zero_point = 1.0, int(sum(ends) + 1) // 2
    literals = torch.tensor(scale), torch.tensor(zero_point)
    return Rounding(node, value, *literals, ends, cast("torch.dtype", dtype), dynamic=dynamic)


def _of_float8(node: Node) -> Rounding | None:
    """Returns the quantizer that multiplies a float8 tensor by its scale, spelled with casts."""
    codes = _float8_codes(node)
    if codes is None or not isinstance(node.args[1], float):
        return None
    dtype = dtype_of(codes)
    assert dtype is not None
    clamped = codes.all_input_nodes[0]
    ends = float(cast("float", clamped.args[1])), float(cast("float", clamped.args[2]))
    value = clamped.all_input_nodes[0].all_input_nodes[0]
    return Rounding(node, value, torch.tensor(node.args[1]), torch.tensor(0), ends, dtype)


def _float8_codes(product: Node) -> Node | None:
    """Returns the float8 tensor that ``product`` casts and multiplies, None if it is another."""
    widened = product.all_input_nodes[0] if product.all_input_nodes else product
    if op_name(widened) != "to" or not widened.all_input_nodes:
        return None
    codes = widened.all_input_nodes[0]
    return codes if dtype_of(codes) in (torch.float8_e4m3fn, torch.float8_e5m2) else None


def rounding_of_codes(weight: Node) -> Rounding | None:
    """Returns the quantizer of a weight that is dequantized from constant codes."""
    if op_name(weight) == "mul" and _float8_codes(weight) is not None:
        return _of_float8_weight(weight)
    reshaped = op_name(weight) in ("view", "reshape", "_unsafe_view")
    if op_name(source := weight.all_input_nodes[0] if reshaped else weight) == _GROUPS:
        return _of_groups(source)
    if op_name(weight) != "dequantize_per_channel":
        return None
    owner = graph_module_of(weight)
    scale, zero_point = (
        cast("Tensor", attribute_of(owner, str(read.target))) for read in weight.all_input_nodes[1:]
    )
    axis, low, high, dtype = weight.args[3:7]
    ends = (float(cast("int", low)), float(cast("int", high)))
    return Rounding(
        weight, None, scale, zero_point, ends, cast("torch.dtype", dtype), cast("int", axis)
    )


def _of_groups(weight: Node) -> Rounding:
    scale = cast(
        "Tensor", attribute_of(graph_module_of(weight), str(weight.all_input_nodes[1].target))
    )
    low, high, dtype, size = weight.args[3:7]
    return Rounding(
        weight,
        None,
        scale,
        torch.zeros((), dtype=torch.int64),
        (float(cast("int", low)), float(cast("int", high))),
        cast("torch.dtype", dtype),
        0,
        group_size=cast("int", size),
    )


def _of_float8_weight(product: Node) -> Rounding | None:
    codes, along = _float8_codes(product), product.all_input_nodes[1]
    assert codes is not None
    dtype, read = dtype_of(codes), along.all_input_nodes[0] if along.all_input_nodes else along
    if dtype is None or read.op != "get_attr":
        return None
    scale = cast("Tensor", attribute_of(graph_module_of(product), str(read.target)))
    sizes = shape_of(along) or ()
    axis = next((axis for axis, size in enumerate(sizes) if size != 1), 0)
    ends = torch.finfo(dtype).min, torch.finfo(dtype).max
    return Rounding(product, None, scale, torch.zeros(()), ends, dtype, axis)
