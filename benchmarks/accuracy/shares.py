"""How much of a quantized model multiplies int8 by int8, read from each tool's own form."""

import math
from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.graph.integer_share import integer_products, integer_share

_MOVES_DATA = frozenset(
    {"Convert", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Multiply", "Subtract", "Broadcast"}
)
"""Between a product and the codes that it reads; the two in the middle undo a scale and a zero."""

_SPATIAL = frozenset({"Convolution", "GroupConvolution"})


def torch_share(quantized: nn.Module, example: tuple[Tensor, ...]) -> float:
    """Returns the share of a model that spells int8 as ``quantized_decomposed`` ops."""
    with torch.no_grad():
        return integer_share(torch.export.export(quantized, example).module())


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
        if macs and all(_is_integer(operand) for operand in list(_operands(op))[:2]):
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
    return 0


def _operands(op: _Op) -> Iterable[_Op]:
    return (read.get_source_output().get_node() for read in op.inputs())


def _is_integer(op: _Op) -> bool:
    while op.get_type_name() in _MOVES_DATA:
        op = next(iter(_operands(op)))
    if op.get_type_name() == "Constant":
        return "8" in str(op.get_element_type())
    return op.get_type_name() == "FakeQuantize"
