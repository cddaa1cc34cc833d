from typing import cast

import pytest
import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph import blame
from embedl_deploy.graph.provenance import rewrites_of, stable_name
from embedl_deploy.rewriting import Chain, Pattern, Phase, apply_patterns
from embedl_deploy.tracing import trace

ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class ReplaceTanhWithReLU(Pattern):
    phase = Phase.CONVERSION
    tree = Chain(tanh=nn.Tanh)
    graft = nn.ReLU


class ReplaceReLUWithSigmoid(Pattern):
    phase = Phase.FUSION
    tree = Chain(act=nn.ReLU)
    graft = nn.Sigmoid


def test_blame_tells_the_whole_history_of_a_node() -> None:
    graph_module = trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval(), (ROW,))
    apply_patterns(graph_module, [ReplaceTanhWithReLU])
    apply_patterns(graph_module, [ReplaceReLUWithSigmoid])
    (node,) = [node for node in graph_module.graph.nodes if node.target == "sigmoid"]

    story = str(blame(node)).splitlines()

    assert story[0] == "%sigmoid = Sigmoid()[sigmoid]"
    assert story[1] == "  made by replace-re-lu-with-sigmoid (fusion) from"
    assert story[2].startswith("    %relu = ReLU()[relu]   # ")
    assert story[3] == "  made by replace-tanh-with-re-lu (conversion) from"
    assert story[4].startswith("    %_1 = Tanh()[1]   # ")


def test_a_traced_node_names_its_line() -> None:
    graph_module = trace(nn.Sequential(nn.Tanh()).eval(), (ROW,))
    (node,) = [node for node in graph_module.graph.nodes if node.op == "call_module"]

    assert "traced from " in str(blame(node))
    assert rewrites_of(node) == ()


def test_stable_names_do_not_count() -> None:
    graph_module = trace(nn.Sequential(nn.Tanh(), nn.Tanh()).eval(), (ROW,))
    apply_patterns(graph_module, [ReplaceTanhWithReLU])

    made = [node for node in graph_module.graph.nodes if node.op == "call_module"]

    assert [node.name for node in made] == ["relu", "relu_1"]
    assert [stable_name(node) for node in made] == [
        "_0/replace-tanh-with-re-lu.0",
        "_1/replace-tanh-with-re-lu.0",
    ]


def test_blame_is_of_a_node() -> None:
    with pytest.raises(ValueError, match="blame takes a node, got str: write blame"):
        blame(cast("Node", "relu"))
