"""Measures what quantizing each group alone does to the output of a model."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from embedl_deploy.errors import CalibrationError
from embedl_deploy.graph.flat_inputs import flat_inputs
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.calibration import ForwardLoop, run_forward_loop
from embedl_deploy.passes.in_float import Saved, in_float, quantizers_in
from embedl_deploy.passes.precision_groups import PrecisionGroup
from embedl_deploy.passes.rounding_errors import ErrorMeter, energy, float_outputs
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize

Method = Literal["output", "gradient"]


@dataclass
class Sensitivities:
    """Sums over the batches seen so far."""

    errors: list[float]
    """Squared error that each group alone causes at the output."""

    signal: float = 0.0
    """Of the squared outputs of the float model."""

    batches: int = 0


def measure_sensitivities(
    quantized: GraphModule,
    groups: Sequence[PrecisionGroup],
    data: ForwardLoop,
    method: Method,
    known: Sensitivities,
    on_batch: Callable[[Sensitivities], object],
) -> None:
    """Adds to ``known`` what each group alone does to the output, in one pass over the data.

    With f the float model and f_g the same model where only group g rounds its operands,

        output:    e_g = Σ |f_g(x) - f(x)|² over the batches x
        gradient:  e_g = Σ |J_g d_g(x)|², d_g what rounding changes at the output of g on exact
                   inputs, J_g the derivative of the model's output by it

    ``output`` runs what follows the group once per group and batch. ``gradient`` equals it to
    first order in d_g and costs two forward and eight backward passes per batch however many
    groups there are; it is estimated along random directions (see ``ErrorMeter``). Groups around
    no weighted layer are measured by ``output`` either way.

    Args:
        quantized: A calibrated graph.
        groups: Of this graph.
        data: As for ``calibrate``.
        method: Which of the two.
        known: What an earlier, interrupted run has seen; those batches are skipped.
        on_batch: Told after each batch.

    Raises:
        CalibrationError: The data never ran the model, or an output is no finite float.

    Source: the sum over layers as a model of the whole: Yao et al. 2021, HAWQ-V3,
        https://arxiv.org/abs/2011.10680. The estimate: Hutchinson 1990,
        https://doi.org/10.1080/03610919008812866
    """
    meter = _Meter(quantized, groups, method, known, on_batch)
    run_forward_loop(meter, data)
    if known.batches == 0:
        raise CalibrationError("the data never ran the model: pass at least one batch")


class _Meter(nn.Module):
    """Stands in for the model while data runs through it."""

    def __init__(
        self,
        model: GraphModule,
        groups: Sequence[PrecisionGroup],
        method: Method,
        known: Sensitivities,
        on_batch: Callable[[Sensitivities], object],
    ) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # measured, not owned
        self.graph = model.graph
        self.known, self.on_batch, self.groups = known, on_batch, groups
        nodes = {node.name: node for node in model.graph.nodes}
        members = [[nodes[name] for name in group.nodes] for group in groups]
        self.by_gradient = {
            node: position
            for position, group in enumerate(members)
            if method == "gradient" and all(map(_is_weighted, group))
            for node in group
        }
        self.one_by_one = {
            position: _Alone(group, _following(group))
            for position, group in enumerate(members)
            if group[0] not in self.by_gradient
        }
        self.seen = 0

    def forward(self, *args: object, **kwargs: object) -> object:
        """Takes in one batch, unless it was seen before; returns the float outputs."""
        model = cast("GraphModule", self.model)
        with in_float(model) as saved:
            exact = Interpreter(model, garbage_collect_values=False)
            inputs = flat_inputs(model, args, kwargs)
            result = cast("object", exact.run(*inputs, enable_io_processing=False))
            self.seen += 1
            if self.seen > self.known.batches:
                self._take_in(exact, inputs, result, saved)
        if self.by_gradient and self.seen > self.known.batches:
            self._follow_gradients(args, kwargs)
        if self.seen > self.known.batches:
            self.known.batches = self.seen
            self.on_batch(self.known)
        return cast("object", model.graph.process_outputs(result))

    def _take_in(
        self, exact: Interpreter, inputs: tuple[object, ...], result: object, saved: Saved
    ) -> None:
        reference = float_outputs(result)
        signal = energy(reference)
        if not math.isfinite(signal) or not reference.numel():
            state = "no floating-point output" if not reference.numel() else "NaN or infinity in it"
            raise CalibrationError(
                f"the float model has {state} on batch {self.seen - 1}: no error can be measured"
            )
        self.known.signal += signal
        for position, alone in self.one_by_one.items():
            before = {
                node: value for node, value in exact.env.items() if node not in alone.following
            }
            rounded = _Rounding(cast("GraphModule", self.model), alone.nodes, saved)
            outputs = rounded.run(*inputs, initial_env=before, enable_io_processing=False)
            self._add(position, energy(float_outputs(outputs) - reference))

    def _follow_gradients(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        # A seed per batch: an interrupted run goes on with the directions it would have had.
        meter = ErrorMeter(cast("GraphModule", self.model), seed=self.seen)
        meter(*args, **kwargs)
        for node, position in self.by_gradient.items():
            layer = meter.errors.layers.get(node)
            self._add(position, 0.0 if layer is None else layer.at_output)

    def _add(self, position: int, error: float) -> None:
        if not math.isfinite(error):
            raise CalibrationError(
                f"quantizing {self.groups[position].name!r} alone gives NaN or infinity at the "
                f"output on batch {self.seen - 1}: skip it with ModulesToSkip"
            )
        self.known.errors[position] += error


@dataclass(frozen=True)
class _Alone:
    """A group, and all nodes whose values change with it."""

    nodes: Sequence[Node]
    following: dict[Node, None] = field(default_factory=dict[Node, None])


def _is_weighted(node: Node) -> bool:
    return isinstance(module_of(node), WeightedFused)


def _following(nodes: Sequence[Node]) -> dict[Node, None]:
    found: dict[Node, None] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting.extend(node.users)
    # Runs stop at the output, also where the group does not reach it.
    found.update(dict.fromkeys(nodes[0].graph.find_nodes(op="output")))
    return found


class _Rounding(Interpreter):
    """Runs a graph in float but for some nodes, which round their operands."""

    def __init__(self, model: GraphModule, nodes: Sequence[Node], saved: Saved) -> None:
        super().__init__(model)
        self.rounded, self.saved = dict.fromkeys(nodes), saved

    def run_node(self, n: Node) -> object:
        if n not in self.rounded:
            return cast("object", super().run_node(n))
        exact = dict[Node, object]()
        for read in n.all_input_nodes:
            stub = module_of(read)
            if isinstance(stub, QuantStub):
                exact[read] = self.env[read]
                with _switched_on((stub,), None, self.saved):
                    self.env[read] = stub(self.env[read])
        module = module_of(n)
        inside = () if module is None else quantizers_in(module)
        layer = module if isinstance(module, WeightedFused) else None
        with torch.no_grad(), _switched_on(inside, layer, self.saved):
            result = cast("object", super().run_node(n))
        self.env.update(exact)
        return result


@contextmanager
def _switched_on(
    quantizers: Sequence[QuantStub | WeightFakeQuantize],
    layer: WeightedFused | None,
    saved: Saved,
) -> Generator[None]:
    """Lets some quantizers round as the quantized model does, and a layer correct its bias."""
    for quantizer in quantizers:
        quantizer.quantizing = saved.quantizing[quantizer]
    if layer is not None:
        layer.bias_correction = saved.corrections[layer]
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.quantizing = False
        if layer is not None:
            layer.bias_correction = None
