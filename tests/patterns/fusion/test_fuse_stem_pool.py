import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedStemPool
from embedl_deploy.patterns import FuseStemPool
from embedl_deploy.testing import check_refusal, check_rewrite

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def stem(channels: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(channels, 4, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).eval()


def test_fuses_the_stem_of_a_residual_network() -> None:
    model = stem()

    check_rewrite(
        FuseStemPool(),
        before=model,
        expected=nn.Sequential(FusedStemPool(model[0], model[1], nn.ReLU(), model[3])),
        example=IMAGE,
    )


def test_fuses_a_stem_without_activation() -> None:
    model = stem()

    check_rewrite(
        FuseStemPool(),
        before=nn.Sequential(model[0], model[1], model[3]).eval(),
        expected=nn.Sequential(FusedStemPool(model[0], model[1], None, model[3])),
        example=IMAGE,
    )


def test_refuses_a_block_deep_inside_a_network() -> None:
    check_refusal(FuseStemPool(), before=stem(channels=8), because="reads 8 channels")


def test_refuses_a_norm_without_statistics() -> None:
    model = stem()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False)

    check_refusal(FuseStemPool(), before=model.eval(), because="no running statistics")


def test_refuses_a_stem_that_a_skip_connection_reads() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = stem()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y: Tensor = self.stem[2](self.stem[1](self.stem[0](x)))
            return self.stem[3](y), y

    check_refusal(FuseStemPool(), before=Skips().eval(), because="also used by")
