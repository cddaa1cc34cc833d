"""Puts together what a quantized model runs in which precision, and what that cost."""

from collections import Counter
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import CalibrationError, PreconditionError
from embedl_deploy.graph.computed_weight import computation_of
from embedl_deploy.graph.evaluate import attribute_of
from embedl_deploy.graph.macs import macs_of
from embedl_deploy.graph.nodes import dtype_of, module_of, module_path, parts_of, source_line
from embedl_deploy.graph.record import has_record
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.calibration import ForwardLoop, run_forward_loop
from embedl_deploy.passes.predicted_speed import prediction_at
from embedl_deploy.passes.qdq_check import reasons_in
from embedl_deploy.passes.qdq_rounding import Rounding
from embedl_deploy.passes.qdq_view import Layer, QdqView, view_of
from embedl_deploy.passes.rounding_errors import ErrorMeter, Errors, LayerError, decibels
from embedl_deploy.quantization.report import LayerQuality, QuantizationReport
from embedl_deploy.quantization.stub import stubs_of
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting.application import graphs_of

_NO_RULE = "no quantized pattern of the backend names it"


def quality_of(model: GraphModule, data: ForwardLoop) -> QuantizationReport:
    """Returns precision, size and error of every layer of a quantized model.

    Args:
        model: What ``quantize`` returned; not changed.
        data: As for ``calibrate``; two forward passes and a few backward passes per batch.

    Raises:
        PreconditionError: The model is not quantized, not calibrated, or in training mode.
        CalibrationError: The data never ran the model.
    """
    _require_quantized(model)
    meter = ErrorMeter(model)
    run_forward_loop(meter, data)
    errors = meter.errors
    if errors.batches == 0:
        raise CalibrationError("the data never ran the model: pass at least one batch")
    view = view_of(model)
    layers = view.layers
    reasons = reasons_in(model)
    named = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    names = {module: name for name, module in named}
    nodes = cast("Iterable[Node]", model.graph.nodes)
    rows = [
        _row(node, layers.get(node), errors, reasons, names)
        for node in nodes
        if node in layers or macs_of(node)
    ]
    macs: Counter[str] = Counter()
    for row in rows:
        macs[row.precision] += row.macs
    return QuantizationReport(
        tuple(rows),
        decibels(errors.signal, errors.noise),
        dict(macs.most_common()),
        stored_bytes(model),
        errors.batches,
        precisions_of(view),
    )


def precisions_of(view: QdqView) -> dict[str, str]:
    """Returns what each node computes in, by its name.

    A layer has the precision of its operands. Anything else has that of what it yields: of the
    codes where it is a quantizer or moves what one made, else its dtype.
    """
    found: dict[str, str] = {}
    for node in view.graph_module.graph.nodes:
        layer, rounding = view.layers.get(node), view.rounding_behind(node)
        if layer is None and rounding is not None:
            found[node.name] = _bits(rounding)
        elif layer is not None or (node.op != "output" and dtype_of(node) is not None):
            found[node.name] = _precision(node, layer)
    return found


def _require_quantized(model: GraphModule) -> None:
    if not has_record(model) or model.training:
        state = "in training mode" if has_record(model) else "never traced"
        raise PreconditionError(
            f"the report needs a quantized model in eval mode, got one {state}: call "
            "quantize(model, args, ...) and eval() first"
        )
    idle = [stub.site for _, stub in stubs_of(model) if not stub.quantizing]
    if idle:
        raise PreconditionError(
            f"the report needs calibrated quantizers: {len(idle)} have no scale yet, the first at "
            f"{idle[0]}: call calibrate(model, forward_loop)"
        )


def _row(
    node: Node,
    layer: Layer | None,
    errors: Errors,
    reasons: dict[str, str],
    names: dict[nn.Module, str],
) -> LayerQuality:
    error = errors.layers.get(node, LayerError())
    total = sum(item.at_output for item in errors.layers.values())
    precision = _precision(node, layer)
    is_float = layer is None or (layer.activation is None and layer.weight is None)
    is_measured = error.signal > 0.0
    module = module_of(node)
    own = module.weighted if isinstance(module, WeightedFused) else module
    return LayerQuality(
        node.name,
        module_path(node) if own is None else names.get(own, module_path(node)),
        source_line(node),
        precision,
        macs_of(node),
        weight_bytes(module),
        decibels(error.signal, error.noise) if is_measured else None,
        decibels(error.signal, error.own_noise) if is_measured and not is_float else None,
        error.at_output / total if total else 0.0,
        reasons.get(node.name, _NO_RULE) if is_float else reasons.get(node.name),
        prediction_at(node),
    )


def _precision(node: Node, layer: Layer | None) -> str:
    name = str(dtype_of(node) or torch.float32).removeprefix("torch.")
    if layer is None or (layer.activation is None and layer.weight is None):
        return name
    if layer.activation is None:
        return f"{_bits(layer.weight)} weights"
    if layer.weight is None:
        return f"{_bits(layer.activation)} activations"
    kinds = dict.fromkeys((_bits(layer.activation), _bits(layer.weight)))
    return " × ".join(kinds)


def _bits(rounding: Rounding | None) -> str:
    assert rounding is not None
    if rounding.dtype.is_floating_point:
        return str(rounding.dtype).removeprefix("torch.")
    return f"int{int(rounding.ends[1] - rounding.ends[0]).bit_length()}"


def weight_bytes(module: nn.Module | None) -> int:
    """Returns the bytes of a layer's weight as it is stored."""
    if module is None:
        return 0
    if not isinstance(module, WeightedFused):
        weight = getattr(module, "weight", None)
        return weight.numel() * weight.element_size() if isinstance(weight, Tensor) else 0
    weight = module.folded_weight_and_bias()[0]
    quantizer = module.weight_fake_quant
    if not isinstance(quantizer, WeightFakeQuantize):
        return weight.numel() * weight.element_size()
    bits = quantizer.config.precision.format.bits
    return weight.numel() * bits // 8 + quantizer.scale.numel() * 4


def stored_bytes(model: GraphModule) -> dict[str, int]:
    """Returns the bytes of all parameters by precision, each tensor once.

    A weight that one layer reads in codes and something else in float is stored in both.
    """
    found: Counter[str] = Counter()
    seen: set[int] = set()
    rounded: set[int] = set()
    for module in model.modules():
        if not isinstance(module, WeightedFused) or not _is_rounded(module):
            continue
        rounded.update(map(id, weight_sources(module)))
        computation = computation_of(module.weighted, "weight")
        key = id(module.weighted if computation else getattr(module.weighted, "weight", None))
        if key not in seen:
            seen.add(key)
            quantizer = cast("WeightFakeQuantize", module.weight_fake_quant)
            found[quantizer.config.precision.value] += weight_bytes(module)
    kept = read_in_float(model)
    for parameter in model.parameters():
        if id(parameter) in kept or id(parameter) not in rounded:
            name = str(parameter.dtype).removeprefix("torch.")
            found[name] += parameter.numel() * parameter.element_size()
    return dict(found.most_common())


def weight_sources(module: WeightedFused) -> tuple[Tensor, ...]:
    """Returns the parameters that a layer's weight is or is computed from."""
    computation = computation_of(module.weighted, "weight")
    if computation is not None:
        return tuple(computation.parameters())
    weight: object = getattr(module.weighted, "weight", None)
    return (weight,) if isinstance(weight, Tensor) else ()


def read_in_float(model: GraphModule) -> set[int]:
    """Returns the ids of the parameters that stay when every rounded weight becomes codes."""
    found: set[int] = set()
    for _, graph_module in graphs_of(model):
        for node in graph_module.graph.nodes:
            if node.op == "get_attr" and node.users:
                found.add(id(attribute_of(graph_module, str(node.target))))
            module = module_of(node)
            if module is not None:
                found |= _read_in_float_by(module)
    return found


def _read_in_float_by(module: nn.Module) -> set[int]:
    parts = (module, *parts_of(module))
    found = {id(parameter) for part in parts for parameter in part.parameters()}
    if isinstance(module, WeightedFused) and _is_rounded(module):
        found.difference_update(map(id, weight_sources(module)))
    return found


def _is_rounded(module: WeightedFused) -> bool:
    return isinstance(module.weight_fake_quant, WeightFakeQuantize)
