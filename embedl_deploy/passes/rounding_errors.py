"""Measures, layer by layer, what rounding does to a quantized model."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from embedl_deploy.graph.flat_inputs import flat_inputs
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.in_float import Saved, in_float, quantizers_in
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

_PROBES = 8
"""Random directions of the output per batch, along which the layers' errors are followed."""


@dataclass
class LayerError:
    """Sums over all batches for one layer."""

    signal: float = 0.0
    noise: float = 0.0
    own_noise: float = 0.0
    at_output: float = 0.0
    """Of the squared error that this layer alone causes at the output, to first order."""


@dataclass
class Errors:
    """What was measured so far."""

    layers: dict[Node, LayerError] = field(default_factory=dict[Node, LayerError])
    signal: float = 0.0
    noise: float = 0.0
    batches: int = 0


class ErrorMeter(nn.Module):
    """Runs a quantized graph rounded and in float, and adds up how far the two lie apart.

    How much of the output's error a layer causes is found without running the model once per
    layer: with e the error that the layer makes of exact inputs, J the derivative of the output
    by the layer's output, and v random signs,

        E[(vᵀ J e)²] = |J e|²

    so that a few backward passes measure all layers at once, to first order in e.

    Source of the estimate: Hutchinson 1990, https://doi.org/10.1080/03610919008812866
    """

    def __init__(self, model: GraphModule, seed: int = 0) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # measured, not owned
        self.graph = model.graph
        self.errors = Errors()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Takes in one batch; returns the float outputs."""
        model = cast("GraphModule", self.model)
        inputs = flat_inputs(model, args, kwargs)
        with torch.enable_grad(), in_float(model) as saved:
            exact = _Exact(model, saved)
            outputs = exact.run(*inputs, enable_io_processing=False)
            reference = float_outputs(outputs)
            self._follow(exact, reference)
        with torch.no_grad():
            rounded = _Keeping(model)
            found = float_outputs(rounded.run(*inputs, enable_io_processing=False))
        self._compare(exact, rounded)
        self.errors.signal += energy(reference)
        self.errors.noise += energy(found - reference.detach())
        self.errors.batches += 1
        return outputs

    def _follow(self, exact: "_Exact", reference: Tensor) -> None:
        """Adds the share of each layer's own error that reaches the output."""
        nodes = [node for node in exact.own if exact.kept[node].requires_grad]
        for _ in range(_PROBES if nodes and reference.requires_grad else 0):
            signs = torch.randint(0, 2, reference.shape, generator=self.generator) * 2.0 - 1.0
            projected = (reference * signs.to(reference)).sum()
            values = [exact.kept[node] for node in nodes]
            gradients = cast(
                "tuple[Tensor | None, ...]",
                torch.autograd.grad(projected, values, retain_graph=True, allow_unused=True),
            )
            for node, gradient in zip(nodes, gradients, strict=True):
                if gradient is not None:
                    reached = float((gradient.double() * exact.own[node].double()).sum())
                    self._of(node).at_output += reached * reached / _PROBES

    def _compare(self, exact: "_Exact", rounded: "_Keeping") -> None:
        for node, value in exact.kept.items():
            layer, value = self._of(node), value.detach()
            layer.signal += energy(value)
            layer.noise += energy(rounded.kept[node] - value)
            if node in exact.own:
                layer.own_noise += energy(exact.own[node])

    def _of(self, node: Node) -> LayerError:
        return self.errors.layers.setdefault(node, LayerError())


def decibels(signal: float, noise: float) -> float:
    """Returns a ratio of energies in decibels; infinite without noise."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


class _Keeping(Interpreter):
    """Keeps what each weighted layer yields."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.kept: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> object:
        result = cast("object", super().run_node(n))
        if not isinstance(module_of(n), WeightedFused) or not isinstance(result, Tensor):
            return result
        result = self.keep(n, result)
        self.kept[n] = result
        return result

    def keep(self, node: Node, result: Tensor) -> Tensor:
        """Returns what goes on in place of ``result``."""
        del node
        return result


class _Exact(_Keeping):
    """Runs in float, and beside each layer the same layer rounded, on the same exact inputs."""

    def __init__(self, model: GraphModule, saved: Saved) -> None:
        super().__init__(model)
        self.saved = saved
        self.own: dict[Node, Tensor] = {}
        """The error that each quantized layer makes alone."""

    def keep(self, node: Node, result: Tensor) -> Tensor:
        module = module_of(node)
        assert isinstance(module, WeightedFused)
        stubs = [module_of(read) for read in node.all_input_nodes]
        inside = quantizers_in(module)
        active = [
            quantizer
            for quantizer in (*(stub for stub in stubs if isinstance(stub, QuantStub)), *inside)
            if self.saved.quantizing[quantizer]
        ]
        if active:
            with torch.no_grad(), _rounding(active, module, self.saved.corrections[module]):
                self.own[node] = self._run_rounded(node, module) - result
        return result if result.requires_grad else result.clone().requires_grad_()

    def _run_rounded(self, node: Node, module: WeightedFused) -> Tensor:
        def rounded(read: Node) -> Tensor:
            value, stub = cast("Tensor", self.env[read]), module_of(read)
            return stub(value) if isinstance(stub, QuantStub) else value

        result: Tensor = module(*map_arg(node.args, rounded), **map_arg(node.kwargs, rounded))
        return result


@contextmanager
def _rounding(
    quantizers: Sequence[QuantStub | WeightFakeQuantize],
    layer: WeightedFused,
    correction: Tensor | None,
) -> Generator[None]:
    for quantizer in quantizers:
        quantizer.quantizing = True
    layer.bias_correction = correction
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.quantizing = False
        layer.bias_correction = None


def float_outputs(outputs: object) -> Tensor:
    """Returns all floating-point outputs as one vector."""
    leaves = (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
    floats = [leaf.flatten() for leaf in leaves if leaf.is_floating_point()]
    return torch.cat(floats) if floats else torch.zeros(0)


def energy(values: Tensor) -> float:
    """Returns the sum of squares, added up in float64."""
    return float(values.detach().double().square().sum())
