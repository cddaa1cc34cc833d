import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedLinearAct, FusedLinearReLU, TransposedLinear
from embedl_deploy.patterns import FuseLinearActivation
from embedl_deploy.testing import check_refusal, check_rewrite

ROWS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


class Reported(nn.Module):
    """Returns the linear layer's output and its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y: Tensor = self.linear(x)
        return y, torch.relu(y)


def test_fuses_relu_under_its_own_name() -> None:
    linear = nn.Linear(4, 6)

    check_rewrite(
        FuseLinearActivation(),
        before=nn.Sequential(linear, nn.ReLU()),
        expected=nn.Sequential(FusedLinearReLU(linear, nn.ReLU())),
        example=ROWS,
    )


@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh()])
def test_fuses_other_activations(activation: nn.Module) -> None:
    linear = nn.Linear(4, 6, bias=False)

    check_rewrite(
        FuseLinearActivation(),
        before=nn.Sequential(linear, activation),
        expected=nn.Sequential(FusedLinearAct(linear, activation)),
        example=ROWS,
    )


def test_fuses_a_linear_with_a_transposed_weight() -> None:
    linear = TransposedLinear(4, 6)

    check_rewrite(
        FuseLinearActivation(),
        before=nn.Sequential(linear, nn.ReLU()),
        expected=nn.Sequential(FusedLinearReLU(linear, nn.ReLU())),
        example=ROWS[0],
    )


def test_fuses_a_shared_linear_at_each_call() -> None:
    linear = nn.Linear(4, 4)
    fused = FusedLinearReLU(linear, nn.ReLU())

    check_rewrite(
        FuseLinearActivation(),
        before=nn.Sequential(linear, nn.ReLU(), linear, nn.ReLU()),
        expected=nn.Sequential(fused, fused),
        example=ROWS,
        count=2,
    )


def test_refuses_a_linear_that_something_else_reads() -> None:
    check_refusal(FuseLinearActivation(), before=Reported(), because="also used by")
