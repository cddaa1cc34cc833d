"""Rows of the lifting table that need more than a list of literals."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.tracing.computed import ComputedWeight
from embedl_deploy.tracing.lift_call import Call, Lifting, Option, Unliftable, sizes_of

_aten = torch.ops.aten

_CONVOLUTIONS: dict[tuple[int, bool], type[nn.Module]] = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
_BATCH_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_INSTANCE_NORMS: dict[int, type[nn.Module]] = {
    3: nn.InstanceNorm1d,
    4: nn.InstanceNorm2d,
    5: nn.InstanceNorm3d,
}
_TRANSPOSES = (_aten.t.default, _aten.numpy_T.default)


def convolution(call: Call) -> Lifting:
    """conv1d, conv2d and conv3d, also with padding by name."""
    return _convolution(call, transposed=False)


def transposed_convolution(call: Call) -> Lifting:
    """conv_transpose1d, 2d and 3d."""
    return _convolution(call, transposed=True)


def general_convolution(call: Call) -> Lifting:
    """The convolution of decomposed programs, which has a flag for transposition."""
    return _convolution(call, transposed=call.option("transposed") is True)


def _convolution(call: Call, transposed: bool) -> Lifting:
    computed = call.computed("weight", "bias")
    shape = call.weight_shape("weight")
    rank = len(shape) - 2
    groups = call.option("groups")
    if not isinstance(groups, int) or (rank, transposed) not in _CONVOLUTIONS:
        raise Unliftable
    padding = call.option("padding")
    if not isinstance(padding, str):
        padding = call.integers("padding", rank)
    first, second = (shape[0], shape[1] * groups)
    options: dict[str, Option] = {
        "in_channels": first if transposed else second,
        "out_channels": second if transposed else first,
        "kernel_size": shape[2:],
        "stride": call.integers("stride", rank),
        "padding": padding,
        "dilation": call.integers("dilation", rank),
        "groups": groups,
        "bias": call.bound.get("bias") is not None,
    }
    if transposed:
        options["output_padding"] = call.integers("output_padding", rank)
    inputs, slots = (call.node_of("input"),), _stored(call, computed)
    return Lifting(_CONVOLUTIONS[rank, transposed], options, inputs, slots, computed=computed)


def _stored(call: Call, computed: Mapping[str, ComputedWeight]) -> dict[str, Node]:
    """Returns the weight and the bias of a call, as far as they are parameters themselves."""
    return call.parameters(**{slot: slot for slot in ("weight", "bias") if slot not in computed})


def linear(call: Call) -> Lifting:
    """``x @ weight.T + bias`` with weight (out, in); both may be computed from parameters."""
    computed = call.computed("weight", "bias")
    return _linear(call.node_of("input"), _stored(call, computed), computed)


def addmm(call: Call) -> Lifting:
    """``bias + mat1 @ mat2`` where ``mat2`` is a parameter, or the transpose of one."""
    call.require(beta=1, alpha=1)
    bias = call.parameter("self")
    if len(call.shape(bias)) != 1:
        raise Unliftable
    return _product(call, "mat1", "mat2", {"bias": bias})


def matmul(call: Call) -> Lifting:
    """``x @ weight`` where ``weight`` is a parameter, or the transpose of one."""
    return _product(call, "self", "mat2" if "mat2" in call.bound else "other", {})


def _product(call: Call, left: str, right: str, slots: dict[str, Node]) -> Lifting:
    activation, weight = call.node_of(left), call.node_of(right)
    if activation.op == "get_attr" or call.rank(left) < 1:
        raise Unliftable
    source = _transposed_source(weight)
    if source is not None:
        slots = {"weight": source, **slots}
        if not isinstance(call.tensor(source), nn.Parameter) or len(call.shape(source)) != 2:
            raise Unliftable
        return _linear(activation, slots, {})
    weight = call.parameter(right)
    shape = call.shape(weight)
    if len(shape) != 2 or ("bias" in slots and call.shape(slots["bias"]) != (shape[1],)):
        raise Unliftable
    options: dict[str, Option] = {
        "in_features": shape[0],
        "out_features": shape[1],
        "bias": "bias" in slots,
    }
    return Lifting(TransposedLinear, options, (activation,), {"weight": weight, **slots})


def _transposed_source(node: Node) -> Node | None:
    """Returns what ``node`` is the matrix transpose of."""
    source = node.args[0] if node.args else None
    if node.op != "call_function" or not isinstance(source, Node):
        return None
    rest = node.args[1:]
    by_permute = node.target is _aten.permute.default and rest == ([1, 0],)
    by_transpose = node.target is _aten.transpose.int and set(rest) in ({0, 1}, {-1, -2})
    return source if by_permute or by_transpose or node.target in _TRANSPOSES else None


def _linear(
    activation: Node, slots: dict[str, Node], computed: Mapping[str, ComputedWeight]
) -> Lifting:
    nodes = {**slots, **{slot: how.node for slot, how in computed.items()}}
    shape = sizes_of(nodes["weight"])
    if len(shape) != 2 or ("bias" in nodes and sizes_of(nodes["bias"]) != shape[:1]):
        raise Unliftable
    options: dict[str, Option] = {
        "in_features": shape[1],
        "out_features": shape[0],
        "bias": "bias" in nodes,
    }
    return Lifting(nn.Linear, options, (activation,), slots, computed=computed)


def embedding(call: Call) -> Lifting:
    """Rows of a weight by index."""
    weight = call.parameter("weight")
    count, width = call.shape(weight)
    padding = call.option("padding_idx")
    options: dict[str, Option] = {
        "num_embeddings": count,
        "embedding_dim": width,
        "padding_idx": padding if isinstance(padding, int) and padding >= 0 else None,
        "scale_grad_by_freq": call.option("scale_grad_by_freq"),
        "sparse": call.option("sparse"),
    }
    return Lifting(nn.Embedding, options, (call.node_of("indices"),), {"weight": weight})


def batch_norm(call: Call) -> Lifting:
    """Batch norm, with or without running statistics, in either mode."""
    training = call.option("training") is True
    return _batch_norm(call, training)


def native_batch_norm(call: Call) -> Lifting:
    """Batch norm by running statistics, as decomposed programs spell it."""
    return _batch_norm(call, training=False, first=True)


def _batch_norm(call: Call, training: bool, first: bool = False) -> Lifting:
    slots = _affine(call)
    tracked = call.bound.get("running_mean") is not None
    if tracked:
        slots["running_mean"] = call.buffer("running_mean")
        slots["running_var"] = call.buffer("running_var")
    options: dict[str, Option] = {
        "num_features": _channels(call, slots),
        "eps": call.option("eps"),
        "momentum": call.option("momentum"),
        "affine": "weight" in slots,
        "track_running_stats": tracked,
    }
    rank = call.rank("input")
    if rank not in _BATCH_NORMS or (not tracked and not training):
        raise Unliftable
    flag = training if tracked else None
    inputs = (call.node_of("input"),)
    return Lifting(_BATCH_NORMS[rank], options, inputs, slots, flag, first)


def layer_norm(call: Call) -> Lifting:
    """Layer norm over the last dimensions; weight and bias may both be missing."""
    return _layer_norm(call)


def native_layer_norm(call: Call) -> Lifting:
    """Layer norm as decomposed programs spell it."""
    return _layer_norm(call, first=True)


def _layer_norm(call: Call, first: bool = False) -> Lifting:
    slots = call.parameters(weight="weight", bias="bias")
    if "bias" in slots and "weight" not in slots:
        raise Unliftable
    options: dict[str, Option] = {
        "normalized_shape": call.option("normalized_shape"),
        "eps": call.option("eps"),
        "elementwise_affine": "weight" in slots,
        "bias": "bias" in slots,
    }
    inputs = (call.node_of("input"),)
    return Lifting(nn.LayerNorm, options, inputs, slots, first_of_several=first)


def rms_norm(call: Call) -> Lifting:
    """Root-mean-square norm over the last dimensions."""
    slots = call.parameters(weight="weight")
    options: dict[str, Option] = {
        "normalized_shape": call.option("normalized_shape"),
        "eps": call.option("eps"),
        "elementwise_affine": "weight" in slots,
    }
    return Lifting(nn.RMSNorm, options, (call.node_of("input"),), slots)


def group_norm(call: Call) -> Lifting:
    """Group norm over channels."""
    slots = _affine(call)
    options: dict[str, Option] = {
        "num_groups": call.option("num_groups"),
        "num_channels": _channels(call, slots),
        "eps": call.option("eps"),
        "affine": "weight" in slots,
    }
    return Lifting(nn.GroupNorm, options, (call.node_of("input"),), slots)


def instance_norm(call: Call) -> Lifting:
    """Instance norm by the statistics of its input."""
    slots = _affine(call)
    call.require(running_mean=None, running_var=None, use_input_stats=True)
    options: dict[str, Option] = {
        "num_features": _channels(call, slots),
        "eps": call.option("eps"),
        "momentum": call.option("momentum"),
        "affine": "weight" in slots,
    }
    rank = call.rank("input")
    if rank not in _INSTANCE_NORMS:
        raise Unliftable
    return Lifting(_INSTANCE_NORMS[rank], options, (call.node_of("input"),), slots)


def _affine(call: Call) -> dict[str, Node]:
    slots = call.parameters(weight="weight", bias="bias")
    if len(slots) == 1:
        raise Unliftable
    return slots


def _channels(call: Call, slots: dict[str, Node]) -> int:
    for node in slots.values():
        return call.shape(node)[0]
    value = call.node_of("input").meta["val"]
    channels: object = value.shape[1]
    if not isinstance(channels, int):
        raise Unliftable
    return channels


def prelu(call: Call) -> Lifting:
    """Leaky ReLU with a learned slope."""
    slots = call.parameters(weight="weight")
    options: dict[str, Option] = {"num_parameters": call.shape(slots["weight"])[0]}
    return Lifting(nn.PReLU, options, (call.node_of("self"),), slots)


def hardtanh(call: Call) -> Lifting:
    """A clamp; ReLU6 where the bounds are 0 and 6."""
    low, high = call.option("min_val"), call.option("max_val")
    if (low, high) == (0, 6):
        return Lifting(nn.ReLU6, {}, (call.node_of("self"),))
    return Lifting(nn.Hardtanh, {"min_val": low, "max_val": high}, (call.node_of("self"),))


def elu(call: Call) -> Lifting:
    """Exponential linear unit."""
    call.require(scale=1, input_scale=1)
    return Lifting(nn.ELU, {"alpha": call.option("alpha")}, (call.node_of("self"),))
