"""Quantizers and the layers that read them, alike for fake-quantized and converted graphs."""

from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import module_of, shape_of
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import CONVOLUTIONS, LINEARS, TRANSPOSED_CONVOLUTIONS
from embedl_deploy.passes.carried_values import carries_values, op_name
from embedl_deploy.passes.qdq_rounding import (
    Rounding,
    rounding_of_codes,
    rounding_of_pair,
    rounding_of_stub,
    rounding_of_weight,
)
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

CONVOLUTION_OPS = ("conv1d", "conv2d", "conv3d", "convolution")
TRANSPOSED_OPS = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_LAYER_OPS = (*CONVOLUTION_OPS, *TRANSPOSED_OPS, "linear")


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
        elif (rounding := rounding_of_pair(node)) is not None:
            view.roundings[node] = rounding
        elif op_name(node) in _LAYER_OPS and len(node.all_input_nodes) > 1:
            view.layers[node] = _layer_of_op(view, node)
    return view


def _see_module(view: QdqView, node: Node, module: nn.Module) -> None:
    if isinstance(module, QuantStub):
        view.roundings[node] = rounding_of_stub(module, node, node.all_input_nodes[0])
    elif isinstance(module, (WeightedFused, *CONVOLUTIONS, *LINEARS)):
        view.layers[node] = _layer_of_module(view, node, module)
    core = module.attention if isinstance(module, FusedAttention) else module
    if isinstance(core, ScaledDotProductAttention):
        view.inner += [
            rounding_of_stub(child, node, None)
            for child in core.children()
            if isinstance(child, QuantStub)
        ]


def _layer_of_module(view: QdqView, node: Node, module: nn.Module) -> Layer:
    owner, axis, weight = module, 0, None
    activation = view.rounding_behind(node.all_input_nodes[0])
    if isinstance(module, WeightedFused):
        owner, axis = module.weighted, module.weight_axis
        if isinstance(module.weight_fake_quant, WeightFakeQuantize):
            weight = rounding_of_weight(module.weight_fake_quant, node, module)
    elif isinstance(module, (*TRANSPOSED_CONVOLUTIONS, TransposedLinear)):
        axis = 1
    if isinstance(module, FusedNormLinear):
        stub = module.linear_input_stub
        activation = rounding_of_stub(stub, node, None) if isinstance(stub, QuantStub) else None
        view.inner += [] if activation is None else [activation]
    kind = "conv" if isinstance(owner, CONVOLUTIONS) else "linear"
    shape = tuple(cast("Tensor", owner.weight).shape)
    is_bare = len(getattr(module, "parts", ())) <= 1 and not getattr(module, "adds_residual", False)
    return Layer(node, kind, activation, weight, shape, axis, is_bare)


def _layer_of_op(view: QdqView, node: Node) -> Layer:
    name = op_name(node)
    source, weight = node.all_input_nodes[:2]
    axis = 1 if name in TRANSPOSED_OPS else 0
    kind = "linear" if name == "linear" else "conv"
    shape = tuple(int(size) for size in shape_of(weight) or ())
    rounding = rounding_of_codes(weight)
    return Layer(node, kind, view.rounding_behind(source), rounding, shape, axis)


def placed(node: Node) -> str:
    """Returns the name of the node before conversion from which ``node`` was made."""
    return str(node.meta.get("converted_from", node.name))
