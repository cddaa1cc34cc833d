"""Keeps simulated quantization out of lowered models."""

from collections.abc import Iterable, Sequence

from torch.fx import Node

from embedl_deploy.errors import LoweringError
from embedl_deploy.lowering.choose import Built
from embedl_deploy.lowering.report import NodeRefusal
from embedl_deploy.lowering.units import is_quantization

_SHOWN = 3


def refuse_simulated(
    eager_nodes: Iterable[Node], built: Sequence[Built], refusals: Sequence[NodeRefusal]
) -> None:
    """Checks that no quantize or dequantize would run as float arithmetic.

    Raises:
        LoweringError: Some would; the message names the first and what the engines said.
    """
    found = [node for node in eager_nodes if is_quantization(node)]
    for one in built:
        if one.slot is not None and one.slot.engine.name == "eager":
            found += [node for node in one.piece.subgraph.nodes if is_quantization(node)]
    if not found:
        return
    names = {node.name for node in found}
    reasons = [f"{r.engine}: {r.reason}" for r in refusals if r.node in names]
    reasons += [
        f"{failure.engine} failed to build {one.report.name}: {failure.reason}"
        for one in built
        for failure in one.report.failures
    ]
    shown = "; ".join(dict.fromkeys(reasons)) or "no engine that takes them was given"
    raise LoweringError(
        f"{len(found)} quantize or dequantize operations would run as float arithmetic, slower "
        f"than the model before quantization, the first {[n.name for n in found[:_SHOWN]]}: "
        f"{shown}. Give an engine that has integer kernels for them, or allow_simulated=True"
    )
