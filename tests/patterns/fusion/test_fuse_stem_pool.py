import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedStemPool
from embedl_deploy.patterns import FuseStemPool
from embedl_deploy.testing import check_refusal, check_rewrite

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


CONV = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
NORM = nn.BatchNorm2d(4)
POOL = nn.MaxPool2d(3, 2, 1)


def stem(conv: nn.Conv2d = CONV, norm: nn.BatchNorm2d = NORM) -> nn.Sequential:
    return nn.Sequential(conv, norm, nn.ReLU(), POOL).eval()


def test_fuses_the_stem_of_a_residual_network() -> None:
    check_rewrite(
        FuseStemPool(),
        before=stem(),
        expected=nn.Sequential(FusedStemPool(CONV, NORM, nn.ReLU(), POOL)),
        example=IMAGE,
    )


def test_fuses_a_stem_without_activation() -> None:
    check_rewrite(
        FuseStemPool(),
        before=nn.Sequential(CONV, NORM, POOL).eval(),
        expected=nn.Sequential(FusedStemPool(CONV, NORM, None, POOL)),
        example=IMAGE,
    )


def test_refuses_a_block_deep_inside_a_network() -> None:
    check_refusal(FuseStemPool(), before=stem(nn.Conv2d(8, 4, 3)), because="reads 8 channels")


def test_refuses_a_norm_without_statistics() -> None:
    model = stem(norm=nn.BatchNorm2d(4, track_running_stats=False))

    check_refusal(FuseStemPool(), before=model, because="no running statistics")


def test_refuses_a_stem_that_a_skip_connection_reads() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = stem()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y: Tensor = self.stem[2](self.stem[1](self.stem[0](x)))
            return self.stem[3](y), y

    check_refusal(FuseStemPool(), before=Skips().eval(), because="also used by")
