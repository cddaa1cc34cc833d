"""Two common rules, each written for three matchers, to be timed on the same graphs.

- ``linear_gelu``: a linear layer and the activation that alone reads it; what the activation
  yields has one reader.
- ``add_relu``: the end of a residual block; what it yields has two readers, the next
  convolution and the next skip connection.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._inductor.pattern_matcher import (
    Arg,
    CallFunction,
    Match,
    PatternMatcherPass,
    register_graph_pattern,
)
from torch.fx import GraphModule, Node, replace_pattern, symbolic_trace
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

from embedl_deploy.passes.quantization import find_matches
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, apply_patterns

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Rule:
    """One rule for each tool."""

    name: str
    ours: type[Pattern]
    inductor: CallFunction
    traced: Callable[..., Tensor]
    """The pattern as ``replace_pattern`` takes it."""

    fused: Callable[..., Tensor]
    """What is put in place of a match; stands for any fused kernel."""


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns the activation of a linear layer."""
    return _ATEN.gelu.default(_ATEN.linear.default(x, weight, bias))


def add_relu(x: Tensor, skip: Tensor) -> Tensor:
    """Returns the activation of a sum."""
    return _ATEN.relu.default(_ATEN.add.Tensor(x, skip))


torch.fx.wrap("linear_gelu")
torch.fx.wrap("add_relu")


class FuseLinearGelu(Pattern):
    """gelu(linear(x)) becomes one call."""

    phase = Phase.FUSION
    tree = Chain(linear=_ATEN.linear.default, act=_ATEN.gelu.default)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(linear_gelu, *match["linear"].args)


class FuseAddRelu(Pattern):
    """relu(x + skip) becomes one call."""

    phase = Phase.FUSION
    tree = Chain(add=_ATEN.add.Tensor, act=_ATEN.relu.default)

    def replace(self, match: PatternMatch) -> Node:
        return match.call_function(add_relu, *match["add"].args)


def _linear_gelu_pattern(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _ATEN.gelu.default(_ATEN.linear.default(x, weight, bias))


def _add_relu_pattern(x: Tensor, skip: Tensor) -> Tensor:
    return _ATEN.relu.default(_ATEN.add.Tensor(x, skip))


RULES = (
    Rule(
        "linear_gelu",
        FuseLinearGelu,
        CallFunction(_ATEN.gelu.default, CallFunction(_ATEN.linear.default, Arg(), Arg(), Arg())),
        _linear_gelu_pattern,
        linear_gelu,
    ),
    Rule(
        "add_relu",
        FuseAddRelu,
        CallFunction(_ATEN.relu.default, CallFunction(_ATEN.add.Tensor, Arg(), Arg())),
        _add_relu_pattern,
        add_relu,
    ),
)


def with_ours(graph_module: GraphModule, rule: Rule) -> int:
    """Applies the rule; returns how often."""
    return len(apply_patterns(graph_module, [rule.ours]).applied)


def with_inductor(graph_module: GraphModule, rule: Rule) -> int:
    """Applies the rule with Inductor's matcher; returns how often."""
    matcher = PatternMatcherPass("benchmark")

    @register_graph_pattern(rule.inductor, pass_dict=matcher)  # pyright: ignore[reportArgumentType]  # as torch does
    def fuse(match: Match, *inputs: Node) -> None:
        output = match.output_node()
        with match.graph.inserting_before(output):
            made = match.graph.call_function(rule.fused, inputs)
        made.meta.update(output.meta)
        output.replace_all_uses_with(made)
        match.erase_nodes()

    del fuse
    return matcher.apply(graph_module.graph)


def with_replace_pattern(graph_module: GraphModule, rule: Rule) -> int:
    """Applies the rule with torch.fx; returns how often."""
    return len(replace_pattern(graph_module, rule.traced, rule.fused))


def found_by_ours(graph_module: GraphModule, rule: Rule) -> int:
    """Finds where the rule fits; returns how often. Changes nothing, as the two below."""
    return sum(match.refusal is None for match in find_matches(graph_module, [rule.ours]))


def found_by_inductor(graph_module: GraphModule, rule: Rule) -> int:
    """The same with Inductor's matcher."""
    matcher = PatternMatcherPass("benchmark")
    found: list[Match] = []

    @register_graph_pattern(rule.inductor, pass_dict=matcher)  # pyright: ignore[reportArgumentType]  # as torch does
    def note(match: Match, *inputs: Node) -> None:
        del inputs
        found.append(match)

    del note
    matcher.apply(graph_module.graph)
    return len(found)


def found_by_replace_pattern(graph_module: GraphModule, rule: Rule) -> int:
    """The same with the matcher that ``replace_pattern`` uses, and as it sets it."""
    pattern = symbolic_trace(rule.traced).graph
    matcher = SubgraphMatcher(
        pattern, match_output=False, match_placeholder=False, remove_overlapping_matches=True
    )
    return len(matcher.match(graph_module.graph))


TOOLS: dict[str, Callable[[GraphModule, Rule], int]] = {
    "ours": with_ours,
    "inductor": with_inductor,
    "replace_pattern": with_replace_pattern,
}
"""Find and replace."""

MATCHERS: dict[str, Callable[[GraphModule, Rule], int]] = {
    "ours_match": found_by_ours,
    "inductor_match": found_by_inductor,
    "replace_pattern_match": found_by_replace_pattern,
}
"""Find only."""
