import torch
from torch import nn

from embedl_deploy.graph.evaluate import evaluate
from embedl_deploy.graph.subgraphs import extract_subgraph, subgraph_inputs
from embedl_deploy.tracing import trace

ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y * self.scale) + y


def test_a_part_runs_on_the_values_it_reads() -> None:
    model = Model().eval()
    graph_module = trace(model, (ROW,))
    nodes = {node.name: node for node in graph_module.graph.nodes}
    chosen = [nodes["add"], nodes["second"], nodes["mul"]]

    part = extract_subgraph(graph_module, chosen)

    assert [node.name for node in subgraph_inputs(chosen)] == ["first"]
    (found,) = part(model.first(ROW))
    assert torch.equal(found, model(ROW))
    assert part.get_submodule("second") is graph_module.get_submodule("second")
    assert next(iter(part.graph.find_nodes(op="placeholder"))).meta["val"].shape == (2, 4)


def test_what_is_read_outside_is_returned() -> None:
    model = Model().eval()
    graph_module = trace(model, (ROW,))
    nodes = {node.name: node for node in graph_module.graph.nodes}

    part = extract_subgraph(graph_module, [nodes["first"], nodes["mul"]])
    chosen = extract_subgraph(graph_module, [nodes["first"], nodes["mul"]], outputs=[nodes["mul"]])

    y = model.first(ROW)
    assert [torch.equal(a, b) for a, b in zip(part(ROW), (y, y * 2), strict=True)] == [True, True]
    assert torch.equal(chosen(ROW)[0], y * 2)


def test_nodes_can_be_evaluated_without_a_graph() -> None:
    model = Model().eval()
    graph_module = trace(model, (ROW,))
    nodes = {node.name: node for node in graph_module.graph.nodes}
    y = model.first(ROW)

    values = evaluate([nodes["second"], nodes["mul"], nodes["add"]], {nodes["first"]: y})

    found = values[nodes["add"]]
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, model(ROW))
