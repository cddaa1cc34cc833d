import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedConvBN, fused_conv
from embedl_deploy.modules.kinds import BatchNorm, Convolution
from embedl_deploy.patterns import FuseConvNorm
from embedl_deploy.testing import check_refusal, check_rewrite

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class CalledTwice(nn.Module):
    """One convolution, called twice with two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.conv(self.first(self.conv(x))))
        return y


class ConvReadTwice(nn.Module):
    """The convolution feeds the norm and the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return self.norm(y) + y


@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
        (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
        (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (2, 3, 5, 5, 5)),
        (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), (2, 3, 8, 8)),
    ],
)
def test_fuses_every_kind_of_convolution(
    conv: Convolution, norm: BatchNorm, shape: tuple[int, ...]
) -> None:
    check_rewrite(
        FuseConvNorm(),
        before=nn.Sequential(conv, norm).eval(),
        expected=nn.Sequential(fused_conv(conv, norm)),
        example=torch.randn(shape, generator=torch.Generator().manual_seed(0)),
    )


def test_fuses_a_shared_convolution_with_each_of_its_norms() -> None:
    model = CalledTwice().eval()

    check_rewrite(
        FuseConvNorm(),
        before=model,
        expected=nn.Sequential(
            FusedConvBN(model.conv, model.first), FusedConvBN(model.conv, model.second)
        ),
        example=IMAGE,
        count=2,
    )


def test_keeps_every_key_and_parameter() -> None:
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    model = nn.Sequential(conv, norm).eval()

    graph = check_rewrite(FuseConvNorm(), model, nn.Sequential(fused_conv(conv, norm)), IMAGE)

    assert list(graph.state_dict()) == list(model.state_dict())


def test_refuses_a_norm_without_statistics() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)

    check_refusal(
        FuseConvNorm(),
        before=nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval(),
        because="keeps no running statistics",
    )


def test_refuses_a_convolution_that_something_else_reads() -> None:
    check_refusal(FuseConvNorm(), before=ConvReadTwice().eval(), because="also used by")


def test_refuses_an_input_without_a_batch_dimension() -> None:
    check_refusal(
        FuseConvNorm(),
        before=nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)).eval(),
        because="no batch dimension",
        example=torch.randn(3, 8),
    )
