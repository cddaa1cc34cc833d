import pytest
import torch
from torch import Tensor, nn

from embedl_deploy import transform
from embedl_deploy.errors import VerificationError
from embedl_deploy.tracing import trace
from embedl_deploy.tracing.faithful import unfaithful

ROWS = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class ActsWhenTraced(nn.Module):
    """Leaves out a factor while it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        y = self.linear(x)
        return y if torch.compiler.is_compiling() else 1.1 * y


def test_a_graph_that_computes_something_else_is_named() -> None:
    model = ActsWhenTraced().eval()

    reason = unfaithful(model, trace(nn.Sequential(model.linear).eval(), (ROWS,)), (ROWS,))

    assert reason is not None
    assert "relative error 9.1e-02" in reason
    assert float(model.calls) == 0.0


def test_a_graph_of_the_same_ops_is_faithful() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).eval()

    assert unfaithful(model, trace(model, (ROWS,)), (ROWS,)) is None


def test_a_fast_path_without_gradients_is_not_held_against_the_graph() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    padded = torch.tensor([[False, False, True], [False, False, False]])
    args = (torch.randn(2, 3, 8),)

    traced = trace(model, args, {"src_key_padding_mask": padded})

    assert unfaithful(model, traced, args, {"src_key_padding_mask": padded}) is None


def test_transform_tells_only_when_it_verifies() -> None:
    class Model(ActsWhenTraced):
        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y if torch.compiler.is_compiling() else 1.1 * y

    model = Model().eval()

    quiet = transform(model, (ROWS,), patterns=[])
    told = transform(model, (ROWS,), patterns=[], verify=True)

    assert not any("differs from Model" in note for note in quiet.report.notes)
    assert any("differs from Model" in note for note in told.report.notes)
    with pytest.raises(VerificationError, match="while it is traced"):
        transform(model, (ROWS,), patterns=[], verify="raise")
