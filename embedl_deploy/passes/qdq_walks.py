"""Ways through a quantized graph that the rules of its check take."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch.fx import Node

from embedl_deploy.graph.nodes import module_of
from embedl_deploy.modules.attention import FusedAttention, ScaledDotProductAttention
from embedl_deploy.modules.kinds import ACTIVATIONS, BATCH_NORMS
from embedl_deploy.passes.carried_values import op_name, shared_inputs
from embedl_deploy.passes.qdq_rounding import Rounding
from embedl_deploy.passes.qdq_view import Layer, QdqView
from embedl_deploy.quantization.stub import QuantStub

_ACTIVATION_OPS = (
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
)
_READS_CODES = (
    "add",
    "addmm",
    "baddbmm",
    "bmm",
    "matmul",
    "mm",
    "quantize_per_tensor",
    "scaled_dot_product_attention",
)


def roundings_by_value(view: QdqView) -> dict[Node, list[Rounding]]:
    """Returns the quantizers of each tensor."""
    found: dict[Node, list[Rounding]] = {}
    for rounding in view.roundings.values():
        assert rounding.value is not None
        found.setdefault(rounding.value, []).append(rounding)
    return found


def sources_sharing(value: Node) -> Iterator[Node]:
    """Yields the tensors before ``value`` whose scale it has to share, nearest first."""
    seen: set[Node] = set()
    waiting = list(shared_inputs(value))
    while waiting:
        source = waiting.pop(0)
        if source not in seen:
            seen.add(source)
            yield source
            waiting += shared_inputs(source)


def reached(
    nodes: Iterable[Node], origins: set[Node], before: Callable[[Node], Sequence[Node]]
) -> set[Node]:
    """Returns the nodes behind one of ``origins``.

    Args:
        nodes: All nodes, each after those that ``before`` gives for it.
        origins: Where to start; not reached by that alone.
        before: The neighbours of a node on the side of the origins.
    """
    found: set[Node] = set()
    for node in nodes:
        if any(other in origins or other in found for other in before(node)):
            found.add(node)
    return found


def is_read_by_quantizer_only(value: Node, rounding: Rounding) -> bool:
    """Tells whether nothing but one quantizer reads ``value``."""
    quantizer = rounding.node
    if op_name(quantizer) == "dequantize_per_tensor":
        quantizer = quantizer.all_input_nodes[0]
    return list(value.users) == [quantizer]


def is_fused(layer: Layer, follower: Node, fusions: Sequence[str]) -> bool:
    """Tells whether the target runs ``follower`` in the kernel of ``layer``.

    Args:
        layer: A layer that nothing was fused to yet.
        follower: What reads its output.
        fusions: Names of the target's fusion patterns.
    """
    is_activation = isinstance(module_of(follower), ACTIVATIONS) or (
        op_name(follower) in _ACTIVATION_OPS
    )
    if is_activation:
        return f"fuse-{layer.kind}-activation" in fusions
    if layer.kind != "conv":
        return False
    if isinstance(module_of(follower), BATCH_NORMS) or op_name(follower) == "batch_norm":
        return "fuse-conv-norm" in fusions
    return op_name(follower) == "add" and "fuse-conv-norm-add" in fusions


def reads_codes(reader: Node, view: QdqView) -> bool:
    """Tells whether ``reader`` can run on the codes of what it reads."""
    module = module_of(reader)
    if isinstance(module, (QuantStub, ScaledDotProductAttention, FusedAttention)):
        return True
    return reader in view.layers or op_name(reader) in _READS_CODES
