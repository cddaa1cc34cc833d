"""What quantizing each group saves: from a small model of a processor, or from measurements."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.evaluate import size_hint
from embedl_deploy.graph.macs import macs_of
from embedl_deploy.graph.nodes import module_of, shape_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.kinds import CONVOLUTIONS
from embedl_deploy.passes.precision_groups import PrecisionGroup
from embedl_deploy.passes.predicted_speed import prediction_at
from embedl_deploy.quantization.stub import QuantStub

CostModel: TypeAlias = Callable[[GraphModule, Sequence[PrecisionGroup]], Sequence[float]]
"""Given the graph with everything quantized and its groups, the milliseconds (or any other unit)
that quantizing each group saves; negative where it loses."""

Measure: TypeAlias = Callable[[Sequence[GraphModule]], Sequence[float]]
"""Milliseconds per call of each of several graphs, built for the target and timed in turns."""


@dataclass(frozen=True)
class ProcessorModel:
    """Savings from multiply-accumulates and bytes: a cost model that needs no measurement.

    A node takes the longer of computing and moving its data,

        t_float = max(macs / rate, 4 · (in + out + weight) / bandwidth)
        t_int8  = max(macs / (speedup · rate), (in + weight + 4 · out) / bandwidth)
                  + (4 + 1) · in / (bandwidth · readers) + call

    where the last line is rounding the input, shared by all that read it in int8, and what an
    int8 kernel costs beyond a float one each time. Layers that multiply each channel alone
    (depthwise) get no speed-up. It ranks groups and knows nothing of fusion or caches: measure
    where ranks matter. The defaults are round figures for one core with AVX512-VNNI.
    """

    rate: float = 40e9
    """Float multiply-accumulates per second."""

    speedup: float = 3.0
    """Of int8 multiply-accumulates over float ones."""

    bandwidth: float = 20e9
    """Bytes per second."""

    call: float = 1e-6
    """Seconds."""

    def __call__(self, quantized: GraphModule, groups: Sequence[PrecisionGroup]) -> list[float]:
        """Returns the milliseconds that quantizing each group saves."""
        nodes = {node.name: node for node in quantized.graph.nodes}
        return [
            1e3 * sum(self.seconds_saved(nodes[name]) for name in group.nodes) for group in groups
        ]

    def seconds_saved(self, node: Node) -> float:
        """Returns what one quantized node saves."""
        module = module_of(node)
        macs, result = macs_of(node), _size(node)
        weight = _weight_size(module)
        stubs = [read for read in node.all_input_nodes if isinstance(module_of(read), QuantStub)]
        source = sum(map(_size, node.all_input_nodes))
        rounding = sum(5 * _size(stub) / max(1, len(stub.users)) for stub in stubs)
        speedup = 1.0 if _is_depthwise(module) else self.speedup
        in_float = max(macs / self.rate, 4 * (source + result + weight) / self.bandwidth)
        in_int8 = max(macs / (speedup * self.rate), (source + weight + 4 * result) / self.bandwidth)
        return in_float - in_int8 - rounding / self.bandwidth - self.call


def predicted_savings(quantized: GraphModule, groups: Sequence[PrecisionGroup]) -> list[float]:
    """Returns the milliseconds that each group saves in int8 over bfloat16, as predicted.

    The prediction is the backend's table of costs, fitted to a measurement of its target (see
    ``predict_speed``); groups that it says nothing of go by ``ProcessorModel``.
    """
    nodes = {node.name: node for node in quantized.graph.nodes}
    return [
        fallback if found is None else found
        for found, fallback in zip(
            (_predicted([nodes[name] for name in group.nodes]) for group in groups),
            ProcessorModel()(quantized, groups),
            strict=True,
        )
    ]


def _predicted(nodes: Sequence[Node]) -> float | None:
    found = [prediction_at(node) for node in nodes]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return sum(one.bf16_ms - one.int8_ms for one in known)


@dataclass(frozen=True)
class Savings:
    """What quantizing each group saves, in milliseconds, by where it is measured."""

    first: tuple[float, ...]
    """With all other groups in float."""

    last: tuple[float, ...]
    """With all other groups quantized."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Returns the means of both, which add up to what everything saves.

        Where groups change each other's savings in pairs only they are the Shapley values.

        Source: Shapley 1953, A value for n-person games,
            https://doi.org/10.1515/9781400881970-018
        """
        return tuple((a + b) / 2 for a, b in zip(self.first, self.last, strict=True))


def measured_savings(
    ends: tuple[GraphModule, GraphModule],
    groups: Sequence[PrecisionGroup],
    signature: str,
    build: Callable[[Sequence[PrecisionGroup]], GraphModule],
    measure: Measure,
) -> tuple[float, float]:
    """Returns the milliseconds that quantizing one group of a signature saves, first and last.

    What a group saves depends on its neighbours. With t(S) the time of a call with the groups S
    quantized, G the groups of this signature and A all groups,

        first = t(∅) - t(G),    last = t(A without G) - t(A)

    shared out equally among G.

    Args:
        ends: Nothing and everything quantized.
        groups: All groups.
        signature: Of the groups to measure.
        build: Quantizes the groups it is given and no other.
        measure: Times the four graphs in turns.
    """
    in_float, everything = ends
    alike = [group for group in groups if group.signature == signature]
    others = [group for group in groups if group.signature != signature]
    nothing, alone, without, all_of_them = measure(
        [in_float, build(alike), build(others), everything]
    )
    return (nothing - alone) / len(alike), (without - all_of_them) / len(alike)


def _size(node: Node) -> int:
    return math.prod(size_hint(size) for size in shape_of(node) or (0,))


def _weight_size(module: nn.Module | None) -> int:
    if not isinstance(module, WeightedFused):
        return 0
    weight = next(module.weighted.parameters(recurse=False), None)
    return 0 if weight is None else weight.numel()


def _is_depthwise(module: nn.Module | None) -> bool:
    layer = module.weighted if isinstance(module, WeightedFused) else module
    return isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels > 1
