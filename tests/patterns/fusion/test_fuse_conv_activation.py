import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedConvAct, FusedConvReLU
from embedl_deploy.patterns import FuseConvActivation
from embedl_deploy.testing import check_refusal, check_rewrite

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    """The convolution is activated and multiplied with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return torch.sigmoid(y) * y.exp()


def test_fuses_relu_under_its_own_name() -> None:
    conv = nn.Conv2d(3, 4, 3)

    check_rewrite(
        FuseConvActivation(),
        before=nn.Sequential(conv, nn.ReLU()),
        expected=nn.Sequential(FusedConvReLU(conv, activation=nn.ReLU())),
        example=IMAGE,
    )


def test_fuses_a_shared_convolution_at_each_call() -> None:
    conv = nn.Conv2d(3, 3, 3)
    fused = FusedConvAct(conv, activation=nn.SiLU())

    check_rewrite(
        FuseConvActivation(),
        before=nn.Sequential(conv, nn.SiLU(), conv, nn.SiLU()),
        expected=nn.Sequential(fused, fused),
        example=IMAGE,
        count=2,
    )


def test_refuses_a_convolution_that_something_else_reads() -> None:
    check_refusal(FuseConvActivation(), before=Gate(), because="also used by")
