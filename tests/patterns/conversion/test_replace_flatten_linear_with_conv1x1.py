import torch
from torch import Tensor, nn

from embedl_deploy.graph import graph_text
from embedl_deploy.modules import LinearAsConv1x1
from embedl_deploy.patterns import ReplaceFlattenLinearWithConv1x1
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_refusal, check_rewrite
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


class Head(nn.Module):
    """A classifier on a pooled image."""

    def __init__(self, pool: int = 1, dropout: nn.Module | None = None) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.dropout = dropout or nn.Sequential()
        self.fc = nn.Linear(4 * pool * pool, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.dropout(torch.flatten(self.pool(x), 1)))
        return y


class Expected(Head):
    """The same classifier as a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.dropout(self.pool(x))
        return torch.flatten(self.head(pooled), 1)

    def __init__(self, dropout: nn.Module | None = None) -> None:
        super().__init__(dropout=dropout)
        self.head = LinearAsConv1x1(self.fc)


class MeanHead(Head):
    """Averages the image without a pooling layer."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x.mean([2, 3]))
        return y


class ActivatedHead(Head):
    """The linear layer is followed by an activation, as in MobileNetV3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_replaces_the_head_of_a_classifier() -> None:
    check_rewrite(ReplaceFlattenLinearWithConv1x1(), Head().eval(), Expected().eval(), IMAGE)


def test_moves_dropout_before_the_convolution() -> None:
    check_rewrite(
        ReplaceFlattenLinearWithConv1x1(),
        Head(dropout=nn.Dropout(0.2)).eval(),
        Expected(dropout=nn.Dropout(0.2)).eval(),
        IMAGE,
    )


def test_leaves_a_dropout_of_channels_where_it_is() -> None:
    graph_module = trace(Head(dropout=nn.Dropout1d(0.2)).eval(), (IMAGE,))

    record = apply_patterns(graph_module, [ReplaceFlattenLinearWithConv1x1])

    assert (record.applied, record.refused) == ((), ())


def test_replaces_a_linear_on_averaged_positions() -> None:
    model = MeanHead().eval()
    graph = trace(model, (IMAGE,))

    record = apply_patterns(graph, [ReplaceFlattenLinearWithConv1x1])
    graph.recompile()

    assert len(record.applied) == 1
    assert "LinearAsConv1x1(4, 3, bias=True)" in graph_text(graph)
    torch.testing.assert_close(graph(IMAGE), model(IMAGE))


def test_keeps_the_linear_layers_own_parameter() -> None:
    model = Head().eval()
    graph = trace(model, (IMAGE,))

    apply_patterns(graph, [ReplaceFlattenLinearWithConv1x1])

    assert list(graph.state_dict()) == ["fc.weight", "fc.bias"]
    assert graph.get_parameter("fc.weight") is model.fc.weight


def test_refuses_an_image_of_several_positions() -> None:
    check_refusal(
        ReplaceFlattenLinearWithConv1x1(),
        Head(pool=2).eval(),
        because="is 2×2, not 1×1",
        example=IMAGE,
    )


def test_refuses_a_linear_with_an_activation() -> None:
    check_refusal(
        ReplaceFlattenLinearWithConv1x1(),
        ActivatedHead().eval(),
        because="activates it",
        example=IMAGE,
    )
