import pytest
import torch
from torch import nn

from embedl_deploy.patterns import RemoveIdentityPool
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_rewrite
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d((7, 5)),
        nn.AdaptiveAvgPool2d((None, 5)),
        nn.AdaptiveMaxPool2d((7, 5)),
        nn.AvgPool2d(1),
        nn.MaxPool2d((1, 1), stride=1),
    ],
)
def test_removes_pooling_of_single_elements(pool: nn.Module) -> None:
    check_rewrite(
        RemoveIdentityPool(),
        before=nn.Sequential(nn.ReLU(), pool, nn.Tanh()),
        expected=nn.Sequential(nn.ReLU(), nn.Tanh()),
        example=IMAGE,
    )


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(5),
        nn.AvgPool2d(1, stride=2),
        nn.AvgPool2d(1, divisor_override=2),
        nn.MaxPool2d(3, stride=1, padding=1),
    ],
)
def test_leaves_pooling_that_changes_something(pool: nn.Module) -> None:
    graph = trace(nn.Sequential(nn.ReLU(), pool, nn.Tanh()), (IMAGE,))

    assert not apply_patterns(graph, [RemoveIdentityPool]).applied


def test_leaves_pooling_of_a_dynamic_image() -> None:
    sizes = {2: torch.export.Dim("height", min=2, max=64)}
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d((7, 5)), nn.Tanh())
    graph = trace(model, (IMAGE,), dynamic_shapes=(sizes,))

    assert not apply_patterns(graph, [RemoveIdentityPool]).applied
