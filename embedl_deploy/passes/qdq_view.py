"""Quantizers and the layers that read them, alike for fake-quantized and converted graphs."""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.nodes import dtype_of, graph_module_of, module_of, shape_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import CONVOLUTIONS, LINEARS, TRANSPOSED_CONVOLUTIONS
from embedl_deploy.passes.carried_values import carries_values, op_name
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

CONVOLUTION_OPS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSED_OPS = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_GROUPS = "dequantize_per_channel_group"
_LAYER_OPS = (*CONVOLUTION_OPS, *TRANSPOSED_OPS, "linear")


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
        if (self.ends, self.dtype, self.is_ready) != (other.ends, other.dtype, other.is_ready):
            return False
        if not self.is_ready:
            return self.scale is other.scale
        return torch.equal(self.scale, other.scale) and torch.equal(
            self.zero_point.long(), other.zero_point.long()
        )

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        if self.group_size is not None:
            return f"{kind}, {self.scale.numel()} scales for groups of {self.group_size}"
        if self.scale.numel() != 1:
            return f"{kind}, {self.scale.numel()} scales along axis {self.axis}"
        return f"{kind}, scale {float(self.scale):.4g}, zero point {int(self.zero_point)}"


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, and how its operands arrive."""

    node: Node
    kind: str
    """``"conv"`` or ``"linear"``."""

    activation: Rounding | None
    weight: Rounding | None
    weight_shape: tuple[int, ...]
    channel_axis: int
    """The axis of the weight that counts output channels."""

    is_bare: bool = True
    """Whether nothing was fused behind it."""


@dataclass
class QdqView:
    """What the rules of the check look at."""

    graph_module: GraphModule
    roundings: dict[Node, Rounding] = field(default_factory=dict[Node, Rounding])
    """Of activations, by the node that yields the rounded tensor, in graph order."""

    inner: list[Rounding] = field(default_factory=list[Rounding])
    """Of activations inside modules."""

    layers: dict[Node, Layer] = field(default_factory=dict[Node, Layer])

    def rounding_behind(self, node: Node) -> Rounding | None:
        """Returns the quantizer whose codes ``node`` holds, moved or not."""
        while node not in self.roundings and carries_values(node):
            node = node.all_input_nodes[0]
        return self.roundings.get(node)


def view_of(graph_module: GraphModule) -> QdqView:
    """Returns the quantizers and layers of a graph, in its order."""
    view = QdqView(graph_module)
    for node in graph_module.graph.nodes:
        module = module_of(node)
        if module is not None:
            _see_module(view, node, module)
        elif (rounding := _of_pair(node)) is not None:
            view.roundings[node] = rounding
        elif op_name(node) in _LAYER_OPS and len(node.all_input_nodes) > 1:
            view.layers[node] = _layer_of_op(view, node)
    return view


def _see_module(view: QdqView, node: Node, module: nn.Module) -> None:
    if isinstance(module, QuantStub):
        view.roundings[node] = _of_stub(module, node, node.all_input_nodes[0])
    elif isinstance(module, (WeightedFused, *CONVOLUTIONS, *LINEARS)):
        view.layers[node] = _layer_of_module(view, node, module)
    core = module.attention if isinstance(module, FusedAttention) else module
    if isinstance(core, ScaledDotProductAttention):
        view.inner += [
            _of_stub(child, node, None) for child in core.children() if isinstance(child, QuantStub)
        ]


def _of_stub(stub: QuantStub, node: Node, value: Node | None) -> Rounding:
    grid = stub.grid
    return Rounding(
        node,
        value,
        stub.scale,
        stub.zero_point,
        (grid.quant_min, grid.quant_max),
        grid.dtype,
        is_ready=stub.quantizing,
    )


def _layer_of_module(view: QdqView, node: Node, module: nn.Module) -> Layer:
    owner, axis, weight = module, 0, None
    activation = view.rounding_behind(node.all_input_nodes[0])
    if isinstance(module, WeightedFused):
        owner, axis = module.weighted, module.weight_axis
        if isinstance(module.weight_fake_quant, WeightFakeQuantize):
            weight = _of_weight(module.weight_fake_quant, node, module)
    elif isinstance(module, (*TRANSPOSED_CONVOLUTIONS, TransposedLinear)):
        axis = 1
    if isinstance(module, FusedNormLinear):
        stub = module.linear_input_stub
        activation = _of_stub(stub, node, None) if isinstance(stub, QuantStub) else None
        view.inner += [] if activation is None else [activation]
    kind = "conv" if isinstance(owner, CONVOLUTIONS) else "linear"
    shape = tuple(cast("Tensor", owner.weight).shape)
    is_bare = len(getattr(module, "parts", ())) <= 1 and not getattr(module, "adds_residual", False)
    return Layer(node, kind, activation, weight, shape, axis, is_bare)


def _of_weight(quantizer: WeightFakeQuantize, node: Node, module: WeightedFused) -> Rounding:
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


def _of_pair(node: Node) -> Rounding | None:
    """Returns the quantizer that ends in ``node``; None if codes do not become values there."""
    if op_name(node) == "mul":
        return _of_float8(node)
    if op_name(node) != "dequantize_per_tensor":
        return None
    codes = node.all_input_nodes[0]
    if op_name(codes) != "quantize_per_tensor":
        return None
    scale, zero_point, low, high, dtype = codes.args[1:6]
    ends = (float(cast("int", low)), float(cast("int", high)))
    value = codes.all_input_nodes[0]
    literals = torch.tensor(scale), torch.tensor(zero_point)
    return Rounding(node, value, *literals, ends, cast("torch.dtype", dtype))


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


def _layer_of_op(view: QdqView, node: Node) -> Layer:
    name = op_name(node)
    source, weight = node.all_input_nodes[:2]
    axis = 1 if name in TRANSPOSED_OPS else 0
    kind = "linear" if name == "linear" else "conv"
    shape = tuple(int(size) for size in shape_of(weight) or ())
    rounding = _of_codes(weight)
    return Layer(node, kind, view.rounding_behind(source), rounding, shape, axis)


def _of_codes(weight: Node) -> Rounding | None:
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


def placed(node: Node) -> str:
    """Returns the name of the node before conversion from which ``node`` was made."""
    return str(node.meta.get("converted_from", node.name))
