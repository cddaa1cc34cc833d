"""What Inductor takes of a quantized graph: an int8 kernel, or a reason why there is none."""

import platform

import torch
from torch import Tensor
from torch.fx import Node

from embedl_deploy.engines.float8_products import is_float8_work
from embedl_deploy.engines.integer_graph import (
    is_quantization,
    is_quantized_product,
    is_scaled_at_run_time,
    operation,
    rounds_to_float8,
    source,
)
from embedl_deploy.graph.nodes import value_of
from embedl_deploy.rewriting.refusal import Refusal

_X86 = ("x86_64", "amd64", "x86")
_KERNELS = frozenset({"conv1d", "conv2d", "convolution", "linear", "addmm", "mm"})
NO_FLOAT8 = (
    "values are rounded to float8, and Inductor would compute the product in a wider type: take "
    "the torchao or the tensorrt engine, which have float8 kernels for such graphs"
)
_CODES = (torch.int8, torch.uint8)
_SIGNED = (
    "Inductor's kernels for scales at run time take unsigned codes: quantize for the backend "
    "inductor, or take the torchao engine"
)


def refusal_of(node: Node) -> Refusal | None:
    """Returns why Inductor would run ``node`` as simulated quantization, None if it would not."""
    if rounds_to_float8(node) or is_float8_work(node):
        return Refusal(NO_FLOAT8, node)
    if not is_quantization(node) and not is_quantized_product(node):
        return None
    reason = _no_kernels_here(node)
    if reason is None:
        reason = _unknown_codes(node) if is_quantization(node) else _no_kernel(node)
    return None if reason is None else Refusal(reason, node)


def _no_kernels_here(node: Node) -> str | None:
    value = value_of(node)
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return (
            f"Inductor has no int8 kernel for quantize/dequantize graphs on {value.device.type}: "
            "take the torchao engine for its products"
        )
    if platform.machine().lower() not in _X86:
        return f"Inductor's int8 kernels are for x86 processors, this one is {platform.machine()}"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch is built without oneDNN, which has the int8 kernels"
    return None


def _unknown_codes(node: Node) -> str | None:
    codes = next((arg for arg in node.args if isinstance(arg, torch.dtype)), None)
    if codes not in _CODES:
        return f"Inductor's quantized kernels take int8 and uint8, this is {codes}"
    if operation(node) == "dequantize_per_channel_group":
        return "Inductor has no kernel for weights in groups: take openvino or onnxruntime"
    if operation(node).endswith("per_token"):
        return "Inductor has no int8 kernel for a scale per token: take the torchao engine"
    if is_scaled_at_run_time(node):
        return None if codes is torch.uint8 else _SIGNED
    if not operation(node).endswith(("per_tensor", "per_channel")):
        return f"Inductor has no kernel for {operation(node)}"
    if operation(node).endswith("per_tensor") and any(
        isinstance(argument, Node) for argument in node.args[1:3]
    ):
        return "Inductor needs the scale and zero point as literals, these are tensors"
    return None


def _no_kernel(node: Node) -> str | None:
    if operation(node) not in _KERNELS:
        return f"Inductor has no int8 kernel for {operation(node)} on x86"
    operands = [source(argument) for argument in node.args if isinstance(argument, Node)]
    names = [operation(one) for one in operands]
    if "dequantize_per_channel_group" in names:
        return "Inductor's int8 kernels take one scale per output channel, these are per group"
    weights = [one for one in operands if operation(one) == "dequantize_per_channel"]
    if not weights:
        return "Inductor's int8 kernels take weights quantized per channel, these are per tensor"
    if weights[0].args[3] != 0 and operation(node) != "mm":
        return (
            "Inductor's int8 kernels take one scale per output channel, these are along axis "
            f"{weights[0].args[3]}"
        )
    return None
