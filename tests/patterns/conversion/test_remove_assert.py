import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from embedl_deploy.patterns import RemoveAssert
from embedl_deploy.rewriting import apply_patterns

ROWS = torch.randn(2, 4)


def with_assert(on_constant: bool = False) -> GraphModule:
    def body(x: Tensor) -> Tensor:
        torch.ops.aten._assert_async.msg(x.sum() if not on_constant else x, "must be true")
        return x.relu()

    class Checks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return body(x)

    return symbolic_trace(Checks())


def test_removes_an_assertion_and_what_only_it_reads() -> None:
    graph = with_assert()

    record = apply_patterns(graph, [RemoveAssert])

    assert len(record.applied) == 1
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_method", "output"]


def test_refuses_an_assertion_on_a_constant() -> None:
    graph = with_assert()
    node = next(n for n in graph.graph.nodes if n.op == "call_function")
    node.args = (True, "must be true")

    record = apply_patterns(graph, [RemoveAssert])

    assert "on a constant" in str(record.refused[0].reason)


def test_refuses_an_assertion_on_a_size_that_depends_on_data() -> None:
    class Picks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nonzero(x).view(-1)

    exported = torch.export.export(Picks(), (torch.tensor([1, 2]),), strict=False)

    record = apply_patterns(exported.graph_module, [RemoveAssert])

    assert all("tensor_metadata" in site.site for site in record.applied)
    assert any("depends on data" in str(site.reason) for site in record.refused)
