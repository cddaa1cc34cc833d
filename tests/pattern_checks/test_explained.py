"""Whether an explanation counts as one that names what was changed."""

from random import Random

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.graph.traced_module import TracedModule
from embedl_deploy.pattern_checks.explained import explained_mutation
from embedl_deploy.pattern_checks.mutations import MUTATIONS
from embedl_deploy.rewriting import Chain, Pattern, PatternMatch, Phase, Refusal
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}


class ConvNormAct(Pattern):
    """Only to be explained."""

    phase = Phase.FUSION
    tree = Chain(conv=nn.Conv2d, norm=nn.BatchNorm2d, act=nn.ReLU)

    def check(self, match: PatternMatch) -> Refusal | None:
        if match["conv"].meta["val"].dtype is not torch.float32:
            return Refusal("it likes something about the convolution less", match["conv"])
        return None

    def replace(self, match: PatternMatch) -> Node:
        return match["conv"]


def graph() -> TracedModule:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    traced = trace(model, (IMAGE,))
    assert isinstance(traced, TracedModule)
    return traced


def calls_of(graph_module: TracedModule) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.op == "call_module"]


def test_a_node_and_its_property_are_named() -> None:
    graph_module = graph()
    mutation = BY_NAME["extra reader"]
    changed = mutation.mutate(graph_module, calls_of(graph_module), Random(0))

    explained = explained_mutation(ConvNormAct(), graph_module, mutation, changed)

    assert explained.is_explained
    assert explained.unprompted


def test_another_node_does_not_count() -> None:
    graph_module = graph()
    mutation = BY_NAME["extra reader"]
    mutation.mutate(graph_module, calls_of(graph_module), Random(0))

    explained = explained_mutation(ConvNormAct(), graph_module, mutation, ("elsewhere",))

    assert not explained.names_node
    assert not explained.is_explained


def test_a_reason_that_does_not_name_the_property_does_not_count() -> None:
    graph_module = graph()
    mutation = BY_NAME["other dtype"]
    changed = mutation.mutate(graph_module, calls_of(graph_module), Random(0))

    explained = explained_mutation(ConvNormAct(), graph_module, mutation, changed)

    assert explained.names_node
    assert not explained.names_property
