"""Says before the build which layers int8 will make slower."""

from torch.fx import GraphModule, Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_norm_linear import FusedNormLinear
from embedl_deploy.passes.carried_values import carries_values
from embedl_deploy.passes.sites import sites_of
from embedl_deploy.quantization.config import TensorQuantConfig
from embedl_deploy.quantization.costs import Prediction, TargetCosts, predict
from embedl_deploy.quantization.precision import Precision
from embedl_deploy.quantization.site import Site
from embedl_deploy.quantization.stub import QuantStub
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting.backend import Backend

_KEY = "predicted_speed"
_SHOWN = 5


def predict_speed(graph_module: GraphModule, backend: Backend) -> tuple[str, ...]:
    """Notes on every node that multiplies what it will cost; returns a sentence for the report.

    Args:
        graph_module: A graph with its quantizers in place, calibrated or not.
        backend: The target; without a table of costs nothing is predicted.
    """
    if not isinstance(backend.costs, TargetCosts):
        return ()
    for node, sites in sites_of(graph_module).items():
        found = _prediction(sites, backend.costs)
        if found is not None:
            node.meta[_KEY] = found
    return _sentence(graph_module, backend.costs)


def prediction_at(node: Node) -> Prediction | None:
    """Returns what was predicted for a node, None where nothing was."""
    found = node.meta.get(_KEY)
    return found if isinstance(found, Prediction) else None


def predicted_slower(graph_module: GraphModule) -> tuple[tuple[Node, Prediction], ...]:
    """Returns the layers with int8 operands that bfloat16 will run faster, largest loss first."""
    layers = _int8_layers(graph_module)
    slower = [(node, forecast) for node, forecast in layers if forecast.is_slower]
    return tuple(sorted(slower, key=lambda item: item[1].bf16_ms - item[1].int8_ms))


def _prediction(sites: tuple[Site, ...], costs: TargetCosts) -> Prediction | None:
    found = [predict(site, costs) for site in sites]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    reason = max(known, key=lambda one: abs(one.int8_ms - one.bf16_ms)).reason
    return Prediction(sum(one.int8_ms for one in known), sum(one.bf16_ms for one in known), reason)


def _sentence(graph_module: GraphModule, costs: TargetCosts) -> tuple[str, ...]:
    layers = _int8_layers(graph_module)
    slower = predicted_slower(graph_module)
    if not slower:
        return ()
    int8 = sum(forecast.int8_ms for _, forecast in layers)
    bf16 = sum(forecast.bf16_ms for _, forecast in layers)
    named = "; ".join(
        f"%{node.name} {1 / forecast.gain:.2f} times ({forecast.reason})"
        for node, forecast in slower[:_SHOWN]
    )
    more = f"; and {len(slower) - _SHOWN} more" if len(slower) > _SHOWN else ""
    return (
        f"{len(slower)} of {len(layers)} int8 layers are predicted slower than in bfloat16 "
        f"({int8:.2f} ms against {bf16:.2f} for all of them, by the costs of {costs.measured_on}): "
        f"{named}{more}",
    )


def _int8_layers(graph_module: GraphModule) -> list[tuple[Node, Prediction]]:
    """Returns the layers that read int8 and have an int8 weight, with what they will cost."""
    return [
        (node, forecast)
        for node in graph_module.graph.nodes
        if (forecast := prediction_at(node)) is not None and _is_int8(node)
    ]


def _is_int8(node: Node) -> bool:
    module = module_of(node)
    if not isinstance(module, WeightedFused):
        return False
    weight = module.weight_fake_quant
    source = node.all_input_nodes[0]
    while carries_values(source):
        source = source.all_input_nodes[0]
    stub = module.linear_input_stub if isinstance(module, FusedNormLinear) else module_of(source)
    return (
        isinstance(weight, WeightFakeQuantize)
        and isinstance(stub, QuantStub)
        and all(_is_int8_config(config) for config in (weight.config, stub.config))
    )


def _is_int8_config(config: TensorQuantConfig) -> bool:
    return config.precision is Precision.INT8
