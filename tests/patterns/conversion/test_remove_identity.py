import torch
from torch import nn

from embedl_deploy.patterns import RemoveIdentity
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_rewrite
from embedl_deploy.tracing import trace

ROWS = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def test_removes_dropout_that_never_drops() -> None:
    linear = nn.Linear(4, 4)

    check_rewrite(
        RemoveIdentity(),
        before=nn.Sequential(nn.Dropout(0.0), linear, nn.Dropout(0.0)).eval(),
        expected=nn.Sequential(linear),
        example=ROWS,
        count=2,
    )


def test_removes_an_identity_of_a_symbolic_graph() -> None:
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), nn.ReLU()).eval())
    graph = trace(traced, (ROWS,), tracer="fx")

    apply_patterns(graph, [RemoveIdentity])
    graph.recompile()

    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(graph(ROWS), ROWS.relu())


def test_leaves_dropout_that_trains() -> None:
    graph = trace(nn.Sequential(nn.Dropout(0.5), nn.ReLU()).eval(), (ROWS,))

    record = apply_patterns(graph, [RemoveIdentity])

    assert not record.applied
