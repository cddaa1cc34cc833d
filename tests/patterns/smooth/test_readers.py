import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.graph.nodes import module_of
from embedl_deploy.passes.quantization import find_matches
from embedl_deploy.patterns.smooth import readers
from embedl_deploy.tracing import trace


class Blocks(nn.Module):
    """Norms, each before a linear layer; the last layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(4))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for index in range(4):
            x = self.layers[min(index, 2)](self.norms[index](x))
        return x


def test_calls_are_counted_once_for_all_sites_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def counted(node: torch.fx.Node) -> nn.Module | None:
        asked.append(node)
        return module_of(node)

    graph = trace(Blocks().eval(), (torch.randn(2, 4),))
    with readers.counting_once(graph.graph):
        monkeypatch.setattr(readers, "module_of", counted)
        refusals = [
            readers.shared_layer(node) for node in graph.graph.nodes if readers.feeds_layers(node)
        ]

    assert [refusal is None for refusal in refusals] == [True, True, False, False]
    assert len(asked) < 4 * len(graph.graph.nodes)


def test_a_layer_that_is_called_twice_is_refused_without_and_with_counting_once() -> None:
    graph = trace(Blocks().eval(), (torch.randn(2, 4),))

    found = find_matches(graph, TENSORRT.smooth_patterns)

    refused = [match for match in found if match.refusal is not None]
    assert len(refused) == 4
    assert all("more than once" in str(match.refusal) for match in refused)
    for match in found:
        assert (readers.shared_layer(match.root) is None) == (match.refusal is None)
