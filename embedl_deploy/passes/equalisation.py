"""Moves scale from layers with large weights into the layers that read them."""

import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.computed_weight import computation_of
from embedl_deploy.graph.nodes import module_of, module_path, parts_of, source_line
from embedl_deploy.graph.parameter_names import one_parameter_by_all_names, reading_places
from embedl_deploy.graph.transposed_linear import TransposedLinear
from embedl_deploy.modules.fold import fold_norm
from embedl_deploy.modules.fused import optional_parameter
from embedl_deploy.modules.fused_conv import FusedConv
from embedl_deploy.modules.fused_linear import FusedLinear
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.modules.kinds import CONVOLUTIONS, LINEARS, TRANSPOSED_CONVOLUTIONS, BatchNorm
from embedl_deploy.quantization.equalisation import equalising_factors
from embedl_deploy.rewriting import PassRecord, SiteRecord

_NAME = "equalise-layers"
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
"""f(s · x) = s · f(x) for every s > 0."""

_MOST_SWEEPS = 10


@dataclass(frozen=True)
class _Layer:
    """A weighted layer, alone or in a fused module."""

    weighted: nn.Module
    norm: BatchNorm | None = None
    activation: nn.Module | None = None
    adds_residual: bool = False
    normalises_input: bool = False


@dataclass(frozen=True)
class _Pair:
    """A layer, and the only one that reads it."""

    producer: _Layer
    reader: _Layer
    node: Node
    """The one of the reader."""

    names: tuple[str, str]


def equalise_layers(graph_module: GraphModule) -> PassRecord:
    """Balances the weights of each layer and the only layer that reads it, through relus.

    The channel that lies between them is divided on one side and multiplied on the other, until
    no factor is left to apply. Factors are powers of two: outputs stay the same bit for bit, as
    long as no value leaves the normal range of its type. What can be divided is a weight with its
    bias, or the gain and offset of the batch norm after it.

    Args:
        graph_module: A graph whose module objects are its own; its parameters are replaced.

    Source: Nagel et al. 2019, section 4.1, https://arxiv.org/abs/1906.04721
    """
    began = time.perf_counter()
    pairs: list[_Pair] = []
    refused: list[SiteRecord] = []
    calls = _calls(graph_module)
    places = reading_places(graph_module)
    for node in graph_module.graph.nodes:
        pair = _pair_at(node)
        if pair is None:
            continue
        reason = _objection(pair, calls, places)
        if reason is None:
            pairs.append(pair)
        else:
            refused.append(_site(pair, reason=reason))
    with one_parameter_by_all_names(graph_module):
        largest = _balance(pairs)
    applied = [
        _site(pair, made=f"{pair.names[1]}, factors up to {factor:g}")
        for pair, factor in zip(pairs, largest, strict=True)
        if factor > 1.0
    ]
    seconds = time.perf_counter() - began
    return PassRecord("equalisation", tuple(applied), tuple(refused), seconds)


def _balance(pairs: list[_Pair]) -> list[float]:
    """Scales all pairs in graph order until none changes; returns the largest factor of each."""
    totals = [torch.ones(()) for _ in pairs]
    with torch.no_grad():
        for _ in range(_MOST_SWEEPS):
            factors = [_scale(pair) for pair in pairs]
            totals = [total * factor for total, factor in zip(totals, factors, strict=True)]
            if all(bool((factor == 1.0).all()) for factor in factors):
                break
    return [float(torch.maximum(total, 1.0 / total).max()) for total in totals]


def _scale(pair: _Pair) -> Tensor:
    produced, read = _produced(pair.producer), _by_input(pair.reader)
    factors = equalising_factors(produced.abs().flatten(1).amax(1), _peaks_read(read))
    if bool((factors != 1.0).any()):
        _divide_outputs(pair.producer, 1.0 / factors)
        _multiply_inputs(pair.reader, factors)
    return factors


def _produced(layer: _Layer) -> Tensor:
    """Returns the weight that runs, output channels first."""
    weighted = layer.weighted
    if layer.norm is not None:
        assert isinstance(weighted, CONVOLUTIONS)
        return fold_norm(weighted, layer.norm)[0]
    return _weight(weighted)


def _by_input(layer: _Layer) -> Tensor:
    """Returns a view of the weight as (groups, out / groups, in / groups, …)."""
    weight = _weight(layer.weighted)
    return weight.reshape(getattr(layer.weighted, "groups", 1), -1, *weight.shape[1:])


def _peaks_read(weight: Tensor) -> Tensor:
    return weight.abs().amax((1, *range(3, weight.dim()))).flatten()


def _divide_outputs(layer: _Layer, inverse: Tensor) -> None:
    """Divides what a layer yields; the inverse of a power of two is exact."""
    if layer.norm is not None:
        for name in ("weight", "bias"):
            _multiply(layer.norm, name, inverse)
        return
    weighted = layer.weighted
    _multiply(weighted, "weight", inverse.reshape(-1, *(1,) * (_weight(weighted).dim() - 1)))
    if optional_parameter(weighted, "bias") is not None:
        _multiply(weighted, "bias", inverse)


def _multiply_inputs(layer: _Layer, factors: Tensor) -> None:
    weight = _by_input(layer)
    by_group = factors.reshape(weight.shape[0], 1, -1, *(1,) * (weight.dim() - 3))
    by_output = by_group.expand(-1, weight.shape[1], *by_group.shape[2:])
    _multiply(layer.weighted, "weight", by_output.flatten(0, 1))


def _pair_at(node: Node) -> _Pair | None:
    """Returns the pair whose reader ``node`` runs; ``None`` where no layer comes before it."""
    reader = _layer_of(node)
    if reader is None or not node.args or not isinstance(node.args[0], Node):
        return None
    made = node.args[0]
    while type(module_of(made)) in _HOMOGENEOUS and isinstance(made.args[0], Node):
        made = made.args[0]
    producer = _layer_of(made)
    return None if producer is None else _Pair(producer, reader, node, (made.name, node.name))


def _objection(pair: _Pair, calls: Counter[int], places: Counter[int]) -> str | None:
    producer, reader = pair.producer, pair.reader
    reason = _kind_objection(producer, reader)
    if reason is not None:
        return reason
    other = _other_reader(pair)
    if other is not None:
        return f"%{other} is also used by another node or twice"
    if any(calls[id(layer.weighted)] > 1 for layer in (producer, reader)):
        return "one of the two layers is called more than once"
    for layer in (producer, reader):
        for part in filter(None, (layer.weighted, layer.norm)):
            for name, parameter in part.named_parameters(recurse=False):
                if places[id(parameter)] > 1:
                    return f"{name} of {type(part).__name__} is tied to another parameter"
    return None


def _kind_objection(producer: _Layer, reader: _Layer) -> str | None:
    if producer.adds_residual:
        return "a residual is added between the two layers"
    if producer.activation is not None and type(producer.activation) not in _HOMOGENEOUS:
        name = type(producer.activation).__name__
        return f"{name}(s · x) is not s · {name}(x)"
    if reader.normalises_input:
        return "the reader normalises its input, which undoes any scale"
    weighted = (producer.weighted, reader.weighted)
    for layer in weighted:
        if isinstance(layer, (TransposedLinear, *TRANSPOSED_CONVOLUTIONS)):
            return f"the weight of {type(layer).__name__} has its input channels first"
    if isinstance(weighted[0], LINEARS) != isinstance(weighted[1], LINEARS):
        return "the channels of a convolution are not the features of a linear layer"
    norm = producer.norm
    if norm is not None and optional_parameter(norm, "weight") is None:
        return "the norm has no gain to scale"
    return None


def _other_reader(pair: _Pair) -> str | None:
    """Returns the name of a node between the two that is read by more than the pair, or None."""
    node = pair.node
    while node.name != pair.names[0]:
        value = node.args[0]
        assert isinstance(value, Node)
        if len(value.users) > 1 or node.args.count(value) > 1:
            return value.name
        node = value
    return None


def _layer_of(node: Node) -> _Layer | None:
    module = module_of(node)
    if isinstance(module, FusedConv):
        return _Layer(module.conv, module.norm, module.activation, module.adds_residual)
    if isinstance(module, FusedLinear):
        is_normed = isinstance(module, FusedNormLinear)
        return _Layer(module.linear, None, module.activation, normalises_input=is_normed)
    if isinstance(module, (*CONVOLUTIONS, *LINEARS)):
        return _Layer(module)
    return None


def _calls(graph_module: GraphModule) -> Counter[int]:
    """Returns how many nodes run each module, in fused ones too."""
    modules = (module_of(node) for node in graph_module.graph.nodes)
    return Counter(
        id(part) for module in modules if module is not None for part in (module, *parts_of(module))
    )


def _weight(layer: nn.Module) -> Tensor:
    return _parameter(layer, "weight")


def _parameter(module: nn.Module, name: str) -> Tensor:
    found = optional_parameter(module, name)
    assert found is not None, f"{type(module).__name__} has a {name}"
    return found


def _multiply(module: nn.Module, name: str, factors: Tensor) -> None:
    computation = computation_of(module, name)
    if computation is not None:
        computation.scale(factors)
        return
    old = _parameter(module, name)
    value = (old * factors).detach().to(old.dtype).contiguous()
    setattr(module, name, nn.Parameter(value, old.requires_grad))


def _site(pair: _Pair, *, reason: str | None = None, made: str | None = None) -> SiteRecord:
    node = pair.node
    place = (module_path(node), source_line(node))
    return SiteRecord("equalisation", _NAME, node.name, pair.names, *place, reason, made)
