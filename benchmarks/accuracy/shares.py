"""How much of a quantized model multiplies int8 by int8, read from each tool's own form."""

import copy
import math
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from embedl_deploy.graph.integer_share import integer_products
from embedl_deploy.graph.macs import macs_of

_MOVES_DATA = frozenset(
    {"Convert", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Multiply", "Subtract", "Broadcast"}
)
"""Between a product and the codes that it reads; the two in the middle undo a scale and a zero."""

_MOVES = frozenset(
    {"view", "reshape", "flatten", "permute", "transpose", "expand", "unsqueeze", "squeeze"}
)
_SCALES = (torch.ops.aten.mul.Tensor, torch.ops.aten.sub.Tensor)

_ATTENTION = "ScaledDotProductAttention"
_SPATIAL = frozenset({"Convolution", "GroupConvolution"})


def torch_share(quantized: nn.Module, model: nn.Module, example: tuple[Tensor, ...]) -> float:
    """Returns the share of ``model`` that ``quantized`` spells in ``quantized_decomposed`` ops.

    nncf spells weights as int8 constants times a scale, less a zero point. All there is is counted
    in the float model: what was made of it may hold whole layers as one operation.
    """
    with torch.no_grad():
        graph_module = _exported(quantized, example)
    covered = sum(
        macs_of(node)
        for node, is_integer in integer_products(graph_module)
        if is_integer or _is_dequantized(node.args[0], graph_module, node.args[1])
    )
    total = all_macs(model, example)
    return covered / total if total else 0.0


def all_macs(model: nn.Module, example: tuple[Tensor, ...]) -> int:
    """Returns the multiply-accumulates of the products of a float model."""
    # With gradients torch's encoder layers are not one fused operation.
    trainable = copy.deepcopy(model).requires_grad_()
    with torch.enable_grad():
        graph_module = _exported(trainable, example)
    return sum(macs_of(node) for node, _ in integer_products(graph_module))


def _exported(model: nn.Module, example: tuple[Tensor, ...]) -> GraphModule:
    graph_module = torch.export.export(model, example).module()
    assert isinstance(graph_module, GraphModule)
    return graph_module


def _is_dequantized(activation: object, graph_module: GraphModule, weight: object) -> bool:
    """Tells whether an activation is dequantized and a weight a scaled int8 constant."""
    while isinstance(weight, Node) and weight.target in _SCALES and weight.all_input_nodes:
        weight = weight.all_input_nodes[0]
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return False
    codes = attrgetter(str(weight.target))(graph_module)
    while isinstance(activation, Node) and _packet(activation) in _MOVES:
        activation = activation.all_input_nodes[0]
    is_rounded = isinstance(activation, Node) and _packet(activation).startswith("dequantize")
    return is_rounded and codes.dtype in (torch.int8, torch.uint8)


def _packet(node: Node) -> str:
    target = node.target
    return target.overloadpacket.__name__ if isinstance(target, OpOverload) else ""


def integer_linears(converted: GraphModule) -> tuple[int, int]:
    """Returns how many linear layers have int8 on both operands, and how many there are."""
    linears = [
        is_integer
        for node, is_integer in integer_products(converted)
        if node.target is torch.ops.aten.linear.default
    ]
    return sum(linears), len(linears)


class _Port(Protocol):
    def get_node(self) -> "_Op": ...


class _Input(Protocol):
    def get_source_output(self) -> _Port: ...


class _Op(Protocol):
    def get_type_name(self) -> str: ...
    def inputs(self) -> Iterable[_Input]: ...
    def get_input_shape(self, index: int, /) -> Iterable[int]: ...
    def get_output_shape(self, index: int, /) -> Iterable[int]: ...
    def get_element_type(self) -> object: ...
    def get_attributes(self) -> Mapping[str, object]: ...


class _Model(Protocol):
    def get_ordered_ops(self) -> Iterable[_Op]: ...


def openvino_share(model: object) -> float:
    """Returns the share of an ``openvino.Model``: products of fake-quantized or int8 tensors."""
    total = covered = 0
    for op in cast("_Model", model).get_ordered_ops():  # its type stub lacks the method
        macs = _macs(op)
        total += macs
        # The probabilities inside attention are never rounded, whatever its operands are.
        is_product = macs > 0 and op.get_type_name() != _ATTENTION
        if is_product and all(_is_integer(operand) for operand in list(_operands(op))[:2]):
            covered += macs
    return covered / total if total else 0.0


def _macs(op: _Op) -> int:
    kind = op.get_type_name()
    if kind in _SPATIAL:
        output = list(op.get_output_shape(0))
        return output[0] * math.prod(output[2:]) * math.prod(op.get_input_shape(1))
    if kind == "MatMul":
        summed = -2 if op.get_attributes().get("transpose_a") else -1
        return math.prod(op.get_output_shape(0)) * list(op.get_input_shape(0))[summed]
    if kind == _ATTENTION:
        query, key, value = (list(op.get_input_shape(index)) for index in range(3))
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def _operands(op: _Op) -> Iterable[_Op]:
    return (read.get_source_output().get_node() for read in op.inputs())


def _is_integer(op: _Op) -> bool:
    while op.get_type_name() in _MOVES_DATA:
        op = next(iter(_operands(op)))
    if op.get_type_name() == "Constant":
        return "8" in str(op.get_element_type())
    return op.get_type_name() == "FakeQuantize"
