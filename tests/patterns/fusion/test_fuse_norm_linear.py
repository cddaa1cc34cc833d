import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedNormLinear
from embedl_deploy.modules.kinds import RowNorm
from embedl_deploy.patterns import FuseNormLinear
from embedl_deploy.testing import check_refusal, check_rewrite

ROWS = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


class PostNorm(nn.Module):
    """The norm feeds the linear layer and the residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return self.linear(y) + y


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4, eps=1e-6)])
def test_fuses_the_norm_with_the_linear(norm: RowNorm) -> None:
    linear = nn.Linear(4, 6)

    check_rewrite(
        FuseNormLinear(),
        before=nn.Sequential(norm, linear),
        expected=nn.Sequential(FusedNormLinear(norm, linear)),
        example=ROWS,
    )


def test_takes_the_activation_along() -> None:
    norm, linear = nn.LayerNorm(4), nn.Linear(4, 6)

    check_rewrite(
        FuseNormLinear(),
        before=nn.Sequential(norm, linear, nn.GELU()),
        expected=nn.Sequential(FusedNormLinear(norm, linear, nn.GELU())),
        example=ROWS,
    )


def test_refuses_a_norm_that_a_residual_reads() -> None:
    check_refusal(FuseNormLinear(), before=PostNorm(), because="also used by", example=ROWS)


def test_refuses_a_norm_over_several_dimensions() -> None:
    check_refusal(
        FuseNormLinear(),
        before=nn.Sequential(nn.LayerNorm([5, 4]), nn.Linear(4, 6)),
        because="spans 2 dimensions",
        example=ROWS,
    )
