"""Multiply-accumulates of single nodes, from recorded shapes."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import Argument, map_arg
from torch.utils.flop_counter import flop_registry

from embedl_deploy.graph.nodes import bound_arguments, module_of, parts_of, value_of
from embedl_deploy.graph.transposed_linear import TransposedLinear

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_CONV_OPS = (torch.ops.aten.conv1d, torch.ops.aten.conv2d, torch.ops.aten.conv3d)
_LINEAR = (nn.Linear, TransposedLinear)


def macs_of(node: Node) -> int:
    """Returns how many multiply-accumulates ``node`` performs at its recorded shapes.

    Convolutions, linear layers, matrix products and attention count; everything else is 0.
    Symbolic sizes count with the value they had at tracing.
    """
    if node.op == "call_module":
        module = module_of(node)
        return 0 if module is None else _module_macs(module, node)
    if isinstance(node.target, OpOverload):
        return _op_macs(node, cast("OpOverload", node.target))
    return 0


def total_macs(graph_module: GraphModule) -> int:
    """Returns the multiply-accumulates of a whole graph."""
    return sum(macs_of(node) for node in graph_module.graph.nodes)


def _module_macs(module: nn.Module, node: Node) -> int:
    parts = parts_of(module)
    if parts:
        return sum(_module_macs(part, node) for part in parts)
    result = _first_tensor(value_of(node))
    source = _first_tensor(value_of(node.all_input_nodes[0])) if node.all_input_nodes else None
    if result is None or source is None:
        return 0
    if isinstance(module, _CONV):
        weight = module.weight
        positions = source if isinstance(module, _TRANSPOSED) else result
        spatial = weight.dim() - 2
        if positions.dim() < spatial:
            return 0
        batch = positions.shape[0] if positions.dim() == weight.dim() else 1
        return _size(batch, *positions.shape[positions.dim() - spatial :]) * weight.numel()
    if isinstance(module, _LINEAR):
        return _size(*source.shape[:-1]) * module.weight.numel()
    return 0


def _op_macs(node: Node, target: OpOverload) -> int:
    packet = target.overloadpacket
    if packet in (torch.ops.aten.linear, torch.ops.aten.matmul):
        return _matmul_macs(node)
    if packet in _CONV_OPS:
        return _conv_macs(node)
    if packet is torch.ops.aten.scaled_dot_product_attention:
        return _attention_macs(node)
    formula = flop_registry.get(packet)
    if formula is None:
        return 0
    values = map_arg(node.args, lambda read: cast("Argument", _known(value_of(read))))
    args = cast("tuple[object, ...]", values)
    flops = cast("int", formula(*args, out_val=_known(value_of(node))))
    return int(flops) // 2


def _matmul_macs(node: Node) -> int:
    left, result = _first_tensor(value_of(node.all_input_nodes[0])), _first_tensor(value_of(node))
    return 0 if left is None or result is None else _size(*result.shape, left.shape[-1])


def _conv_macs(node: Node) -> int:
    weight = _first_tensor(value_of(node.all_input_nodes[1]))
    result = _first_tensor(value_of(node))
    if weight is None or result is None:
        return 0
    spatial = weight.dim() - 2
    batch = result.shape[0] if result.dim() == weight.dim() else 1
    return _size(batch, *result.shape[result.dim() - spatial :]) * weight.numel()


def _attention_macs(node: Node) -> int:
    bound = bound_arguments(node)
    operands = (cast("Node", bound[name]) for name in ("query", "key", "value"))
    query, key, value = (_first_tensor(value_of(operand)) for operand in operands)
    if query is None or key is None or value is None:
        return 0
    pairs = _size(*query.shape[:-1], key.shape[-2])
    return pairs * (_size(query.shape[-1]) + _size(value.shape[-1]))


def _known(value: object) -> object:
    """Returns a recorded value with the sizes it had at tracing: reading symbols adds guards."""
    if isinstance(value, (tuple, list)):
        return tuple(_known(item) for item in cast("tuple[object, ...]", value))
    if isinstance(value, torch.SymInt):
        return _hint(value)
    if not isinstance(value, Tensor):
        return value
    return torch.empty([_hint(size) for size in value.shape], dtype=value.dtype, device="meta")


def _first_tensor(value: object) -> Tensor | None:
    if isinstance(value, (tuple, list)):
        value = next(iter(cast("tuple[object]", value)), None)
    return value if isinstance(value, Tensor) else None


def _size(*sizes: int | torch.SymInt) -> int:
    return math.prod(_hint(size) for size in sizes)


def _hint(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    hint = cast("int | None", size.node.hint)
    return 1 if hint is None else int(hint)
