"""Places quantizers where the patterns of a backend ask for them."""

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.making import make_node
from embedl_deploy.graph.nodes import dtype_of, module_of, source_line
from embedl_deploy.graph.provenance import Rewrite, origin_of, record_rewrite
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_conv import FusedConv, fused_conv
from embedl_deploy.modules.fused_linear import FusedLinear, fused_linear
from embedl_deploy.modules.kinds import CONVOLUTIONS, LINEARS
from embedl_deploy.passes.dynamic_layers import no_dynamic_scale
from embedl_deploy.passes.placement_decisions import decision_notes, layer_decisions
from embedl_deploy.passes.points import WEIGHT, Point, is_float_tensor, points_of
from embedl_deploy.passes.skip_rules import SkipRules
from embedl_deploy.passes.weight_groups import no_groups
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.dynamic import DynamicStub
from embedl_deploy.quantization.placement import Placement
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import PassRecord, PatternMatch, Refusal, SiteRecord
from embedl_deploy.rewriting.records import site_record
from embedl_deploy.rewriting.workspace import Workspace

Q = TypeVar("Q", QuantStub, WeightFakeQuantize)

_MADE_SYMMETRIC = "the target takes symmetric activations only: asymmetric ones were made symmetric"


def insert_quantizers(
    graph_module: GraphModule,
    matches: Sequence[PatternMatch],
    config: QuantConfig,
    placement: Placement,
) -> PassRecord:
    """Gives every operand that a match names its quantizer; changes the graph in place.

    A tensor gets one stub, read by all quantized readers; other readers keep the tensor itself.
    A weight gets one ``WeightFakeQuantize`` on the folded weight, whoever calls the layer.

    Args:
        graph_module: A graph whose module objects are its own.
        matches: Of quantized patterns; those with ``apply=False`` are left alone.
        config: Precisions, and what to skip.
        placement: How the target takes quantized tensors.
    """
    began = time.perf_counter()
    insertion = _Insertion(graph_module, config, placement)
    decided = tuple(decision_notes(graph_module, insertion.layers, matches, placement))
    insertion.quantize_all(matches)
    unmet = insertion.skip.unmet(("stub", "weight"))
    return PassRecord(
        "quantization",
        tuple(insertion.applied),
        tuple(insertion.refused),
        time.perf_counter() - began,
        notes=(*insertion.notes, *decided, *unmet),
    )


class _Work(NamedTuple):
    """A point, and the reason to leave it alone if there is one."""

    point: Point
    reason: str | None


class _Insertion:
    """The state of one run over a graph."""

    def __init__(
        self, graph_module: GraphModule, config: QuantConfig, placement: Placement
    ) -> None:
        self.graph_module = graph_module
        self.config = config
        self.placement = placement
        self.workspace = Workspace(graph_module)
        self.skip = SkipRules(config.skip, graph_module)
        self.activation = placement.accepted_activation(config.activation)
        self.notes: tuple[str, ...] = ()
        if self.activation != config.activation:
            self.notes = (_MADE_SYMMETRIC,)
        if self.activation is not None and self.activation.dynamic is not None:
            self.notes = (*self.notes, f"activations: {self.activation}, nothing to calibrate")
        self.stubs: dict[Node, Node] = {}
        self.made: dict[Node, None] = {}
        self.wrappers: dict[int, WeightedFused] = {}
        self.layers = layer_decisions(graph_module)
        self.applied: list[SiteRecord] = []
        self.refused: list[SiteRecord] = []

    def quantize_all(self, matches: Sequence[PatternMatch]) -> None:
        """Places the quantizers of all matches, those that only share a stub last."""
        for match in sorted(matches, key=self._only_shares):
            self.quantize(match)

    def quantize(self, match: PatternMatch) -> None:
        """Places the quantizers of one match, or records why not."""
        reason = self._decline(match)
        points = points_of(match) if reason is None else ()
        reason = reason or self._foreign_dtype(points) or self._no_groups(points)
        if reason is None and self.activation is not None and self.activation.dynamic is not None:
            reason = no_dynamic_scale(points)
        if reason is not None:
            self._refuse(match, reason)
            return
        work = [_Work(point, self._objection(match, point)) for point in points]
        reasons = dict.fromkeys(item.reason for item in work if item.reason is not None)
        for item_reason in reasons:
            self._refuse(match, item_reason)
        placed = [self._place(match, item.point) for item in work if item.reason is None]
        if placed:
            self.applied.append(site_record(match, made=", ".join(dict.fromkeys(placed))))

    def _decline(self, match: PatternMatch) -> str | None:
        if not match.apply:
            return "vetoed in the plan"
        if match.refusal is not None:
            return str(match.refusal)
        names = (match.pattern.name, *self.layers.get(match.root, ()))
        decisions = [self.placement.decision(name) for name in names]
        table = (decision.reason for decision in decisions if not decision.quantized)
        return next(table, None)

    def _foreign_dtype(self, points: Sequence[Point]) -> str | None:
        """Returns which operand has a dtype that no kernel in low precision goes with."""
        values = [point.value for point in points] if self.activation else []
        for value in values:
            dtype = None if value is None else dtype_of(value)
            if value is None or dtype is None or is_float_tensor(value):
                continue
            if dtype.is_floating_point or dtype.is_complex:
                return f"%{value.name} is {dtype}, a dtype the target lacks in low precision"
        return None

    def _no_groups(self, points: Sequence[Point]) -> str | None:
        """Returns why a weight cannot be cut into the groups that were asked for."""
        size = None if self.config.weight is None else self.config.weight.group_size
        if size is None:
            return None
        weighted = [point.node for point in points if point.slot == WEIGHT]
        found = (no_groups(node, size) for node in weighted if not self.skip.reason(WEIGHT, node))
        return next((reason for reason in found if reason is not None), None)

    def _only_shares(self, match: PatternMatch) -> bool:
        return self.placement.decision(match.pattern.name).only_if_shared

    def _objection(self, match: PatternMatch, point: Point) -> str | None:
        if point.slot == WEIGHT:
            if self.config.weight is None:
                return "the configuration leaves weights in float"
            return self.skip.reason("weight", point.node)
        if self.activation is None:
            return "the configuration leaves activations in float"
        if point.value is not None and not is_float_tensor(point.value):
            return f"%{point.value.name} is no floating-point tensor"
        is_rounded = point.value in self.stubs or point.value in self.made
        if not is_rounded and self._only_shares(match):
            return self.placement.decision(match.pattern.name).reason
        return self.skip.reason("stub", point.node)

    def _refuse(self, match: PatternMatch, reason: str) -> None:
        self.refused.append(site_record(match, refusal=Refusal(reason, match.root)))

    def _place(self, match: PatternMatch, point: Point) -> str:
        """Places one quantizer and returns its name."""
        if point.slot == WEIGHT:
            return self._place_on_weight(point.node)
        if point.slot is not None:
            return self._place_in_module(point.node, point.slot)
        assert point.value is not None
        stub = self._stub_after(match, point.value)
        point.replace(stub)
        return stub.name

    def _place_on_weight(self, node: Node) -> str:
        layer = self._weighted(node)
        if layer.weight_fake_quant is None:
            assert self.config.weight is not None
            weight = _weight_like(layer)
            quantizer = WeightFakeQuantize(
                self.config.weight, weight.shape, layer.weight_axis, site=_site(node)
            )
            layer.weight_fake_quant = _on(weight.device, quantizer)
        return f"{node.target}.weight_fake_quant"

    def _weighted(self, node: Node) -> WeightedFused:
        """Returns the fused module that ``node`` runs, wrapping a bare layer into one."""
        module = module_of(node)
        if isinstance(module, WeightedFused):
            return module
        assert module is not None
        wrapper = self.wrappers.get(id(module))
        if wrapper is None:
            wrapper = self.wrappers[id(module)] = _wrapped(module)
        node.target, _ = self.workspace.path_for(wrapper, self.workspace.container_of(node))
        return wrapper

    def _place_in_module(self, node: Node, slot: str) -> str:
        module = module_of(node)
        assert module is not None
        holder = next((part for part in _holders(module) if hasattr(part, slot)), module)
        if getattr(holder, slot) is None:
            setattr(holder, slot, self._new_stub(f"{_site(node)}, {slot}", node))
        return f"{node.target}.{slot}"

    def _stub_after(self, match: PatternMatch, value: Node) -> Node:
        known = value if value in self.made else self.stubs.get(value)
        if known is not None:
            return known
        stub = self._new_stub(_site(value), value)
        path, _ = self.workspace.path_for(stub, self.workspace.container_of(value))
        graph = self.graph_module.graph
        with graph.inserting_after(_last_placeholder(value)):
            node = make_node(graph, "call_module", path, (value,))
        for key in ("val", "stack_trace", "nn_module_stack"):
            if key in value.meta:
                node.meta[key] = value.meta[key]
        rewrite = Rewrite(match.pattern.name, match.stage, (origin_of(value),))
        record_rewrite(node, rewrite, (value,))
        self.stubs[value] = node
        self.made[node] = None
        return node

    def _new_stub(self, site: str, near: Node) -> QuantStub:
        assert self.activation is not None
        kind = QuantStub if self.activation.dynamic is None else DynamicStub
        stub = kind(self.activation, self.placement.activation_dtype, site)
        device = getattr(near.meta.get("val"), "device", None)
        return stub if device is None else _on(device, stub)


def accepted_dtypes(config: QuantConfig, placement: Placement) -> Iterable[str]:
    """Yields a sentence for each precision asked for that the target has no kernels for."""
    asked = (
        ("activation", config.activation, placement.activation_precisions),
        ("weight", config.weight, placement.weight_precisions),
    )
    for name, tensor, known in asked:
        if tensor is not None and tensor.precision not in known:
            listed = ", ".join(precision.name for precision in known)
            yield f"{name} precision {tensor.precision.name} (known: {listed})"
    dynamic = None if config.activation is None else config.activation.dynamic
    if dynamic is not None and dynamic not in placement.dynamic_activations:
        listed = ", ".join(one.name for one in placement.dynamic_activations) or "none"
        yield f"activation scales at run time, {dynamic.name} (known: {listed})"


def _on(device: torch.device, quantizer: Q) -> Q:
    # Most models are on the CPU, and moving to where a module is takes as long as making it.
    return quantizer if quantizer.scale.device == device else quantizer.to(device)


def _weight_like(layer: WeightedFused) -> Tensor:
    """Returns a tensor of the shape and on the device of the weight that ``layer`` runs."""
    if isinstance(layer, (FusedConv, FusedLinear)):
        # Folding a norm into the weight changes its numbers only.
        return cast("Tensor", layer.weighted.weight)
    return layer.folded_weight_and_bias()[0]


def _wrapped(module: nn.Module) -> WeightedFused:
    if isinstance(module, CONVOLUTIONS):
        return fused_conv(module)
    assert isinstance(module, LINEARS), f"{type(module).__name__} has no weight to quantize"
    return fused_linear(module)


def _holders(module: nn.Module) -> tuple[nn.Module, ...]:
    parts: tuple[nn.Module, ...] = getattr(module, "parts", ())
    return (module, *parts)


def _last_placeholder(value: Node) -> Node:
    """Returns the last placeholder if ``value`` is one, so that placeholders stay together."""
    while value.op == "placeholder" and value.next.op == "placeholder":
        value = value.next
    return value


def _site(node: Node) -> str:
    line = source_line(node)
    return f"%{node.name}" + (f" ({line})" if line else "")
