"""Keeps simulated quantization out of lowered models."""

from collections.abc import Iterable, Sequence

from torch.fx import Node

from embedl_deploy.errors import LoweringError
from embedl_deploy.lowering.candidates import Candidates
from embedl_deploy.lowering.choose import Built
from embedl_deploy.lowering.partitioning import Partition
from embedl_deploy.lowering.report import NodeRefusal
from embedl_deploy.lowering.settings import Choose
from embedl_deploy.lowering.units import is_quantization

_SHOWN = 3
_EAGER = "eager"


def refuse_simulated(
    eager_nodes: Iterable[Node], built: Sequence[Built], refusals: Sequence[NodeRefusal]
) -> None:
    """Checks that no quantize or dequantize runs as float arithmetic in what was built.

    Raises:
        LoweringError: Some would; the message names the first and what the engines said.
    """
    found = [node for node in eager_nodes if is_quantization(node)]
    for one in built:
        if one.slot is not None and one.slot.engine.name == _EAGER:
            found += [node for node in one.piece.subgraph.nodes if is_quantization(node)]
    if found:
        failures = [
            f"{failure.engine} failed to build {one.report.name}: {failure.reason}"
            for one in built
            for failure in one.report.failures
        ]
        raise LoweringError(_message(found, [*_said_of(found, refusals), *failures]))


def refuse_hopeless(partition: Partition, candidates: Candidates, choose: Choose) -> None:
    """Checks before anything is built that some engine may run every quantize and dequantize.

    With ``choose="measure"`` an engine for the whole graph may yet replace the cut.

    Raises:
        LoweringError: Some would run as float arithmetic whatever builds.
    """
    found = hopeless(partition, candidates)
    whole = choose == "measure" and _has_kernels(candidates.takers, candidates)
    if found and not whole:
        raise LoweringError(_message(found, _said_of(found, candidates.refusals)))


def hopeless(partition: Partition, candidates: Candidates) -> list[Node]:
    """Returns what quantizes or dequantizes and can only run as float arithmetic.

    That is what was cut to run eager, and what lies in a subgraph that only the eager engine
    takes as a whole.
    """
    found = [node for node in partition.eager_nodes if is_quantization(node)]
    for subgraph in partition.subgraphs:
        inside = [node for node in subgraph.nodes if is_quantization(node)]
        if inside and not _has_kernels(subgraph.nodes, candidates):
            found += inside
    return found


def _has_kernels(nodes: Iterable[Node], candidates: Candidates) -> bool:
    """Tells whether an engine other than eager takes all nodes."""
    takers, every = candidates.takers, tuple(nodes)
    return any(
        engine.name != _EAGER and all(label in takers.get(node, ()) for node in every)
        for label, engine in candidates.engines.items()
    )


def _said_of(found: Sequence[Node], refusals: Sequence[NodeRefusal]) -> list[str]:
    names = {node.name for node in found}
    return [f"{r.engine}: {r.reason}" for r in refusals if r.node in names]


def _message(found: Sequence[Node], reasons: Sequence[str]) -> str:
    shown = "; ".join(dict.fromkeys(reasons)) or "no engine that takes them was given"
    return (
        f"{len(found)} quantize or dequantize operations would run as float arithmetic, slower "
        f"than the model before quantization, the first {[n.name for n in found[:_SHOWN]]}: "
        f"{shown}. Give an engine that has integer kernels for them, or allow_simulated=True"
    )
