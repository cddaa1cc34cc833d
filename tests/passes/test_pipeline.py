from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule

from embedl_deploy.backends.registry import discover_backends
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.modules import FusedConv
from embedl_deploy.passes import Pass, PassRecord, pipeline, run_passes
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class CountPass(Pass):
    """Counts nodes."""

    name = "count"

    def run(self, graph_module: GraphModule) -> PassRecord:
        return PassRecord(self.name, notes=(f"{len(graph_module.graph.nodes)} nodes",))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout()).eval()


def test_passes_run_in_the_order_of_the_design() -> None:
    passes = pipeline(discover_backends()["tensorrt"])

    names = [step.name for step in passes]

    assert names == ["conversion", "fusion", "smooth", "quantization", "cleanup"]


def test_the_conversions_and_fusions_keep_the_output() -> None:
    model = small_net()
    graph_module = trace(model, (IMAGE,))

    records = run_passes(graph_module, pipeline(discover_backends()["tensorrt"])[:2])
    graph_module.recompile()

    assert any(isinstance(module, FusedConv) for module in graph_module.modules())
    assert [record.name for record in records] == ["conversion", "fusion"]
    assert relative_error(graph_module(IMAGE), model(IMAGE)) < 1e-6


def test_a_pass_of_the_users_own_runs_among_them() -> None:
    graph_module = trace(small_net(), (IMAGE,))
    conversion, *rest = pipeline(discover_backends()["lattice"])

    records = run_passes(graph_module, (conversion, CountPass(), *rest))

    assert records[1].notes == (f"{len(graph_module.graph.nodes)} nodes",)
