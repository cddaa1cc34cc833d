"""Counts what a rewritten graph holds as one module, and says why the rest is not."""

from collections import Counter
from collections.abc import Mapping

from torch import nn
from torch.fx import GraphModule, Node

from benchmarks.zoo.present import GROUPS
from embedl_deploy import modules
from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.graph.nodes import module_of, parts_of
from embedl_deploy.modules.kinds import ACTIVATIONS, BATCH_NORMS, CONVOLUTIONS, LINEARS
from embedl_deploy.rewriting import TransformationReport
from embedl_deploy.rewriting.explain import explain_graph

_RULES = {
    "attention": ("recompose-attention", "decompose-attention", "fuse-attention"),
    "conv_norm": ("fuse-conv-norm", "fuse-conv-norm-add"),
    "conv_norm_activation": ("fuse-conv-norm-activation", "fuse-stem-pool"),
    "linear_activation": ("fuse-linear-activation",),
}
_Groups = Mapping[str, Counter[str]]


def groups_fused(graph_module: GraphModule) -> dict[str, Counter[str]]:
    """Returns how many of each group the graph holds as one module, by path as in ``present``."""
    groups: dict[str, Counter[str]] = {name: Counter() for name in GROUPS}
    names = {id(module): name for name, module in graph_module.named_modules()}
    for graph in graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            module = module_of(node)
            kind = _kind_of(module) if module is not None else None
            if kind is not None:
                groups[kind][_path(node, kind, names)] += 1
    return groups


def _path(node: Node, kind: str, names: Mapping[int, str]) -> str:
    if kind == "attention":
        stack = node.meta.get("nn_module_stack") or {"": ("",)}
        return str(list(stack.values())[-1][0])
    layers = (*CONVOLUTIONS, *LINEARS)
    held = (part for part in parts_of(module_of(node)) if isinstance(part, layers))
    return next((names.get(id(part), "") for part in held), "")


def _kind_of(module: nn.Module) -> str | None:
    parts = parts_of(module)
    is_active = any(isinstance(part, ACTIVATIONS) for part in parts)
    if isinstance(module, (modules.FusedAttention, modules.ScaledDotProductAttention)):
        return "attention"
    if any(isinstance(part, BATCH_NORMS) for part in parts):
        has_add = "Add" in type(module).__name__
        return "conv_norm_activation" if is_active and not has_add else "conv_norm"
    return "linear_activation" if isinstance(module, modules.FusedLinear) and is_active else None


def misses(
    present: _Groups, fused: _Groups, traced: GraphModule, report: TransformationReport
) -> dict[str, object]:
    """Returns, for each kind of group of which some are not fused, where and why."""
    found: dict[str, object] = {}
    for kind, groups in present.items():
        missing = groups.total() - fused[kind].total()
        if missing > 0:
            sites = groups - fused[kind]
            found[kind] = {
                "missing": missing,
                "sites": list(sites.elements())[:8],
                "reasons": _reasons(kind, traced, report),
            }
    return found


def _reasons(kind: str, traced: GraphModule, report: TransformationReport) -> list[str]:
    """Returns the refusals of the kind's rules, or what comes nearest to a match."""
    refused = [
        f"{refusal.pattern}: {refusal.reason}"
        for refusal in report.refusals()
        if refusal.pattern in _RULES[kind] and "was changed by" not in (refusal.reason or "")
    ]
    if refused:
        return list(Counter(refused))[:8]
    backend = resolve_backend("tensorrt")
    rules = (*backend.conversion_patterns, *backend.fusion_patterns)
    nearest = (
        explain_graph(traced, rule, None, rules).first
        for rule in rules
        if rule.name in _RULES[kind]
    )
    return [str(miss) for miss in nearest if miss is not None]
