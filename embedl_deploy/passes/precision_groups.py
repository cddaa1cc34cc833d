"""The groups of a quantized graph that can be left in float one by one, each by one skip rule."""

import glob
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from embedl_deploy.graph.macs import macs_of
from embedl_deploy.graph.nodes import module_of, module_path, shape_of
from embedl_deploy.graph.text import label
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.passes.quantization_quality import read_in_float, weight_bytes, weight_sources
from embedl_deploy.quantization.config import QuantConfig
from embedl_deploy.quantization.skipping import ModulesToSkip
from embedl_deploy.rewriting.records import SiteRecord, report_of


@dataclass(frozen=True)
class PrecisionGroup:
    """What is quantized or left in float together: a fused layer with all its operands."""

    name: str
    """Path of the user's module, which is also the rule that leaves the group in float."""

    kind: str
    """What its first node runs."""

    nodes: tuple[str, ...]
    """The nodes whose operands are rounded, in graph order."""

    signature: str
    """What runs and on which shapes; groups with equal signatures take equally long."""

    macs: int
    """Multiply-accumulates of all its nodes at the traced shapes."""

    saved_bytes: int
    """Of parameters, scales counted; below zero where something else reads the weight in float."""


@dataclass(frozen=True)
class Grouping:
    """Every quantized place of a graph."""

    groups: tuple[PrecisionGroup, ...]
    """In graph order."""

    fixed: dict[str, str]
    """Nodes that no skip rule means alone, and why; they stay quantized."""


def groups_of(quantized: GraphModule) -> Grouping:
    """Returns what can be left in float of a graph, one rule each.

    Calls of one module are one group, and so are the operands of one fused layer. A call without
    a module goes by the module that made it, unless that one holds other groups too.

    Args:
        quantized: What ``quantize`` or ``insert_qdq`` returned.
    """
    sites = dict.fromkeys(record.site for record in _applied(quantized))
    nodes = cast("Iterable[Node]", quantized.graph.nodes)
    named = cast("Iterable[tuple[str, nn.Module]]", quantized.named_modules())
    names = {module: name for name, module in named}
    by_name: dict[str, list[Node]] = {}
    for node in nodes:
        if node.name in sites:
            by_name.setdefault(_name(node, names), []).append(node)
    groups: list[PrecisionGroup] = []
    fixed: dict[str, str] = {}
    kept = read_in_float(quantized)
    for name, members in by_name.items():
        reason = _objection(name, by_name)
        if reason is None:
            groups.append(_group(name, members, kept))
        else:
            fixed.update((node.name, reason) for node in members)
    return Grouping(tuple(groups), fixed)


def config_without(config: QuantConfig, groups: Iterable[PrecisionGroup]) -> QuantConfig:
    """Returns ``config`` with ``groups`` left in float as well."""
    # A name with brackets would be read as a pattern.
    rules = [glob.escape(group.name) for group in groups]
    skip = config.skip
    return replace(
        config, skip=ModulesToSkip({*skip.stub, *rules}, {*skip.weight, *rules}, skip.smooth)
    )


def _applied(quantized: GraphModule) -> Iterator[SiteRecord]:
    """Yields the places that the last quantization of a graph rounded."""
    records = [record for record in report_of(quantized).passes if record.name == "quantization"]
    if records:
        yield from records[-1].applied


def _name(node: Node, names: dict[nn.Module, str]) -> str:
    module = module_of(node)
    if isinstance(module, WeightedFused):
        return names.get(module.weighted, module_path(node))
    return module_path(node) if module is None else str(node.target)


def _objection(name: str, names: Iterable[str]) -> str | None:
    if not name:
        return "no module of the model made it, so that no rule names it"
    inside = next((other for other in names if other.startswith(f"{name}.")), None)
    if inside is not None:
        return f"a rule for {name!r} would mean {inside!r} too"
    return None


def _group(name: str, nodes: Sequence[Node], kept: Set[int]) -> PrecisionGroup:
    modules = dict.fromkeys(module_of(node) for node in nodes)
    return PrecisionGroup(
        name,
        _kind(nodes[0]),
        tuple(node.name for node in nodes),
        "; ".join(_signature(node) for node in nodes),
        sum(macs_of(node) for node in nodes),
        sum(_saved_bytes(module, kept) for module in modules),
    )


def _kind(node: Node) -> str:
    module = module_of(node)
    return label(node) if module is None else type(module).__name__


def _signature(node: Node) -> str:
    module = module_of(node)
    settings = "" if module is None else module.extra_repr()
    weight = getattr(module.weighted, "weight", None) if isinstance(module, WeightedFused) else None
    shapes = [shape_of(read) for read in (*node.all_input_nodes, node)]
    shapes += [tuple(weight.shape)] if isinstance(weight, Tensor) else []
    return f"{_kind(node)}({settings}) {', '.join(map(str, shapes))}"


def _saved_bytes(module: nn.Module | None, kept: Set[int]) -> int:
    if not isinstance(module, WeightedFused) or module.weight_fake_quant is None:
        return 0
    if not kept.isdisjoint(map(id, weight_sources(module))):
        return -weight_bytes(module)
    weight = cast("Tensor", module.weighted.weight)
    return weight.numel() * weight.element_size() - weight_bytes(module)
