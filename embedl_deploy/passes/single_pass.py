"""Smooths, inserts quantizers and calibrates them, from one pass over the data where that is exact.

Quantizers and smoothing look at the same run of a copy that has quantizers but is not smoothed.
Dividing a channel by a factor divides its extremes and its mean by it, so that what the smoothed
tensors would have shown is known without running them: exactly for a product, up to float32
rounding where the factors go into a norm. Only a histogram of a smoothed tensor has to be counted.
"""

import time
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.graph.traced_module import with_own_modules
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.bias_correction import InputMean
from embedl_deploy.passes.calibration import (
    ForwardLoop,
    Progress,
    calibrate_model,
    finish_calibration,
    observe_model,
)
from embedl_deploy.passes.quantization import find_matches, placement_of, quantize_graph
from embedl_deploy.passes.smoothing import Smoothing, smooth_graph
from embedl_deploy.passes.smoothing_site import SmoothedTensor
from embedl_deploy.patterns.smooth.steps import carries_channels
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.observers import make_observer
from embedl_deploy.quantization.precision import CalibrationMethod
from embedl_deploy.quantization.stub import QuantStub, stubs_of
from embedl_deploy.rewriting import PassRecord
from embedl_deploy.rewriting.backend import Backend

Place = tuple[str, str]
"""A node's name and the name of a quantizer inside the module that it runs; "" for a stub that is
a node of its own, which goes by the name of what it reads."""


def smooth_and_calibrate(
    graph: GraphModule,
    config: QuantConfig,
    forward_loop: ForwardLoop,
    backend: Backend,
    progress: Progress | None = None,
) -> tuple[PassRecord, ...]:
    """Smooths ``graph``, gives it quantizers and their scales; changes it in place.

    Args:
        graph: A transformed graph whose module objects are its own.
        config: Precisions, what to skip, smoothing.
        forward_loop: Runs the model on data, see ``calibrate_model``; gone through once where
            ranges are those of ``MINMAX``, else twice if there is anything to smooth.
        backend: Whose patterns say where.
        progress: Told the number of forward passes after each one that counts for the scales.
    """
    matches = find_matches(graph, backend.smooth_patterns)
    if _has_exact_ranges(config):
        smoothing = Smoothing.of(graph, matches, config, placement_of(backend))
        if smoothing.sites:
            return _in_one_pass(smoothing, forward_loop, backend, progress)
        smoothed = smoothing.apply()
    else:
        if isinstance(forward_loop, Iterator):
            forward_loop = list(cast("Iterator[object]", forward_loop))  # gone through twice
        smoothed = smooth_graph(graph, matches, config, forward_loop, placement_of(backend))
    inserted = quantize_graph(graph, None, config, backend)
    graph.recompile()
    calibrated = calibrate_model(
        graph, forward_loop, corrects_biases=config.bias_correction, progress=progress
    )
    return (smoothed, inserted, *calibrated)


def _has_exact_ranges(config: QuantConfig) -> bool:
    """Tells whether the range of a divided tensor follows from that of its channels."""
    chosen = config.activation
    return chosen is None or chosen.calibration_method is CalibrationMethod.MINMAX


def _in_one_pass(
    smoothing: Smoothing, forward_loop: ForwardLoop, backend: Backend, progress: Progress | None
) -> tuple[PassRecord, ...]:
    graph, config = smoothing.graph_module, smoothing.config
    began = time.perf_counter()
    observed = with_own_modules(graph, deferred=True, shares_layers=True)
    quantize_graph(observed, None, config, backend)
    observed.finish()
    with smoothing.watching(observed):
        seen = observe_model(observed, forward_loop, progress)
    smoothed = smoothing.apply()
    inserted = quantize_graph(graph, None, config, backend)
    graph.recompile()
    _hand_over_ranges(observed, graph, smoothing.smoothed)
    _hand_over_means(observed, graph, smoothing.smoothed)
    calibrated = finish_calibration(graph, seen, began, corrects_biases=config.bias_correction)
    return (smoothed, inserted, *calibrated)


def _hand_over_ranges(
    observed: GraphModule, graph: GraphModule, smoothed: dict[str, SmoothedTensor]
) -> None:
    known = {place: stub.observer for place, stub in _placed_stubs(observed)}
    nodes = {node.name: node for node in cast("list[Node]", list(graph.graph.nodes))}
    for place, stub in _placed_stubs(graph):
        if stub.config.dynamic is not None:
            continue
        name, inside = place
        divided = None if inside else _smoothed(nodes[name], smoothed)
        if divided is None:
            stub.observer = known[place]
            continue
        # What gives the smoothed tensor may be new; what carries its rows on is not.
        before = known.get(place) or known[divided.site.value.name, ""]
        assert before is not None, "a smoothed tensor had a quantizer before it was smoothed"
        stub.observer = make_observer(stub.config, stub.grid)
        batches = torch.tensor(before.batches)
        stub.observer.load_state({"extremes": divided.extremes(), "batches": batches})


def _smoothed(node: Node, smoothed: dict[str, SmoothedTensor]) -> SmoothedTensor | None:
    """Returns the smoothed tensor whose rows ``node`` gives, None if it gives no such rows."""
    while node.name not in smoothed and carries_channels(node):
        node = node.all_input_nodes[0]
    return smoothed.get(node.name)


def _hand_over_means(
    observed: GraphModule, graph: GraphModule, smoothed: dict[str, SmoothedTensor]
) -> None:
    factors = {
        id(layer): divided.factors for divided in smoothed.values() for layer in divided.site.layers
    }
    known = dict(_layers(observed))
    for name, layer in _layers(graph):
        mean = known[name].__dict__.get("input_mean")
        if isinstance(mean, InputMean):
            divisor = factors.get(id(layer.weighted))
            own = mean if divisor is None else mean.divided_by(divisor)
            layer.__dict__["input_mean"] = own


def _layers(graph: GraphModule) -> Iterator[tuple[str, WeightedFused]]:
    for node in cast("list[Node]", list(graph.graph.nodes)):
        module = module_of(node)
        if isinstance(module, WeightedFused):
            yield node.name, module


def _placed_stubs(graph: GraphModule) -> Iterator[tuple[Place, QuantStub]]:
    for node in cast("list[Node]", list(graph.graph.nodes)):
        module = module_of(node)
        if isinstance(module, QuantStub):
            yield (node.all_input_nodes[0].name, ""), module
        elif isinstance(module, nn.Module):
            yield from (((node.name, name), stub) for name, stub in stubs_of(module))
