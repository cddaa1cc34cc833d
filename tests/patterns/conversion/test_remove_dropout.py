import torch
from torch import nn

from embedl_deploy.patterns import RemoveDropout
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_rewrite
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def test_removes_dropout_in_eval_mode() -> None:
    conv = nn.Conv2d(4, 4, 1)

    check_rewrite(
        RemoveDropout(),
        before=nn.Sequential(nn.Dropout(0.5), conv, nn.Dropout2d(0.3)).eval(),
        expected=nn.Sequential(conv),
        example=IMAGE,
        count=2,
    )


def test_refuses_dropout_in_training_mode() -> None:
    graph = trace(nn.Sequential(nn.Dropout(0.5), nn.ReLU()).eval(), (IMAGE,))
    graph.train()

    record = apply_patterns(graph, [RemoveDropout])

    assert not record.applied
    assert "training mode" in str(record.refused[0].reason)
