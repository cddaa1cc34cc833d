import networkx as nx
import torch
from torch import Tensor, nn

from embedl_deploy.graph import to_networkx
from embedl_deploy.tracing import trace

ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Difference(nn.Module):
    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return x - y if self.swapped else y - x


def test_a_vertex_is_a_node_and_an_edge_a_use() -> None:
    graph = to_networkx(trace(Difference(swapped=False).eval(), (ROW,)))

    assert list(graph.nodes) == ["x", "linear", "sub", "output"]
    assert graph.nodes["linear"]["label"].startswith("Linear(")
    assert graph.edges["linear", "sub", 0]["position"] == "0.0"
    assert graph.edges["x", "sub", 0]["position"] == "1.0"
    assert nx.is_directed_acyclic_graph(graph)


def test_swapped_operands_differ_in_position() -> None:
    plain, swapped = (to_networkx(trace(Difference(s).eval(), (ROW,))) for s in (False, True))

    assert plain.edges["x", "sub", 0]["position"] != swapped.edges["x", "sub", 0]["position"]


def test_a_value_used_twice_has_two_edges() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    graph = to_networkx(trace(Square().eval(), (ROW,)))

    assert sorted(edge["position"] for edge in graph["x"]["mul"].values()) == ["0.0", "1.0"]
