# pyright: reportPrivateUsage=false
"""Turns a calibrated graph into a flat one with integer weights, which engines take."""

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.errors import PreconditionError
from embedl_deploy.graph.nodes import module_of, value_of
from embedl_deploy.graph.record import has_record
from embedl_deploy.graph.traced_module import TracedModule
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.flattening import attributes_of, flatten_call
from embedl_deploy.passes.integer_weights import IntegerWeights, integer_weights
from embedl_deploy.passes.quantization import own_modules
from embedl_deploy.quantization.dynamic import DynamicQuantizeDequantize
from embedl_deploy.quantization.quantize_dequantize import QuantizeDequantize
from embedl_deploy.quantization.stub import QuantStub, stubs_of
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting.application import graphs_of


def convert(model: GraphModule) -> GraphModule:
    """Returns the flat graph that engines and exporters take; ``model`` is not changed.

    - A stub becomes ``quantized_decomposed`` quantize and dequantize, with literal scales, or with
      the ATen calls that compute a dynamic one.
    - A quantized weight becomes a buffer of integers and its ``dequantize_per_channel``, computed
      on the folded weight; the folded bias stays float.
    - Every module call becomes the ATen calls it makes. What no call reads is dropped, the
      float copies of quantized weights first of all.

    The values are those of ``model``: fake quantization and these ops round alike.

    Raises:
        PreconditionError: The graph was never traced, is in training mode, or is not calibrated.
    """
    _require_calibrated(model)
    graph_module = own_modules(model)
    _spell_stubs(graph_module)
    parts = tuple(dict.fromkeys(part for _, part in graphs_of(graph_module)))
    for part in parts:
        _flatten(part)
        part.graph.lint()
    _drop_unread(graph_module, parts)
    for body in parts[1:]:
        body.recompile()
    if isinstance(graph_module, TracedModule):
        graph_module.finish()
    else:
        graph_module.recompile()
    return graph_module


def _require_calibrated(model: GraphModule) -> None:
    if not has_record(model):
        raise PreconditionError(
            "convert needs a transformed graph, got a model that was never traced: "
            "call transform(model, args) or quantize(model, args, ...) first"
        )
    if model.training:
        raise PreconditionError(
            "convert needs a model in eval mode, got one in training mode: call model.eval()"
        )
    idle = [stub.site for _, stub in stubs_of(model) if not stub.quantizing]
    if idle:
        raise PreconditionError(
            f"convert needs calibrated quantizers: {len(idle)} have no scale yet, the first at "
            f"{idle[0]}: call calibrate(model, forward_loop)"
        )


def _spell_stubs(graph_module: GraphModule) -> None:
    """Replaces each stub, wherever it is registered, by the quantize and dequantize ops."""
    spelled: dict[int, nn.Module] = {}
    for module in tuple(graph_module.modules()):
        for name, child in module._modules.items():
            if isinstance(child, QuantStub):
                if id(child) not in spelled:
                    spelled[id(child)] = _spelled(child)
                module._modules[name] = spelled[id(child)]


def _spelled(stub: QuantStub) -> nn.Module:
    if stub.config.dynamic is not None:
        return DynamicQuantizeDequantize(stub.grid, stub.config.dynamic)
    return QuantizeDequantize.of(stub)


def _flatten(graph_module: GraphModule) -> None:
    weights: dict[int, IntegerWeights] = {}
    attributes = attributes_of(graph_module)
    for node in tuple(graph_module.graph.nodes):
        module = module_of(node)
        if module is None or not isinstance(value_of(node), Tensor):
            continue
        function: Callable[..., object] = module
        quantizer = getattr(module, "weight_fake_quant", None)
        if isinstance(module, WeightedFused) and isinstance(quantizer, WeightFakeQuantize):
            if id(module) not in weights:
                weights[id(module)] = integer_weights(module, quantizer)
                attributes = attributes_of(graph_module)
            function = weights[id(module)].run
        name, before, after = node.name, node.prev, node.next
        flatten_call(node, function, attributes)
        _remember(name, before, after)


def _remember(name: str, before: Node, after: Node) -> None:
    """Notes on the nodes between two others which node they were made from."""
    node = before.next
    while node is not after:
        node.meta["converted_from"] = name
        node = node.next


def _drop_unread(graph_module: GraphModule, parts: tuple[GraphModule, ...]) -> None:
    """Unregisters the parameters, buffers and modules that no node reads.

    Args:
        graph_module: The graph.
        parts: The graph itself and the bodies of its conditions and loops.
    """
    kept = {_place(part, str(node.target)) for part in parts for node in _attribute_reads(part)}
    called = {id(module_of(node)) for part in parts for node in part.graph.nodes}
    inside = {
        id(part)
        for module in graph_module.modules()
        if id(module) in called
        for part in module.modules()
    }
    for module in reversed(tuple(graph_module.modules())):
        if id(module) in inside:
            continue
        for name in [name for name in module._parameters if (id(module), name) not in kept]:
            del module._parameters[name]
        for name in [name for name in module._buffers if (id(module), name) not in kept]:
            del module._buffers[name]
        for name in [name for name, child in module._modules.items() if _is_empty(child)]:
            # A branch of a condition has no parameters, but a node reads it.
            if id(module._modules[name]) not in inside and (id(module), name) not in kept:
                del module._modules[name]


def _attribute_reads(graph_module: GraphModule) -> Iterator[Node]:
    return (node for node in graph_module.graph.nodes if node.op == "get_attr")


def _place(graph_module: GraphModule, path: str) -> tuple[int, str]:
    """Returns the module that owns the attribute at ``path``, by identity, and its name there."""
    parent, _, name = path.rpartition(".")
    return id(graph_module.get_submodule(parent)), name


def _is_empty(module: nn.Module | None) -> bool:
    return module is None or not (module._parameters or module._buffers or module._modules)
