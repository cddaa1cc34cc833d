import pytest
import torch
from torch import nn

from embedl_deploy.modules import FusedConvBNAct, FusedConvBNReLU
from embedl_deploy.patterns import FuseConvNormActivation
from embedl_deploy.testing import check_refusal, check_rewrite

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


CONV, NORM = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


def block(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(CONV, NORM, activation).eval()


def test_fuses_relu_under_its_own_name() -> None:
    model = block(nn.ReLU(inplace=True))

    check_rewrite(
        FuseConvNormActivation(),
        before=model,
        expected=nn.Sequential(FusedConvBNReLU(CONV, NORM, nn.ReLU())),
        example=IMAGE,
    )


@pytest.mark.parametrize(
    "activation", [nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.2), nn.GELU("tanh"), nn.PReLU(4)]
)
def test_fuses_other_activations(activation: nn.Module) -> None:
    model = block(activation)

    check_rewrite(
        FuseConvNormActivation(),
        before=model,
        expected=nn.Sequential(FusedConvBNAct(CONV, NORM, activation)),
        example=IMAGE,
    )


def test_the_fused_module_trains_its_parts() -> None:
    model = block(nn.ReLU())
    fused = FusedConvBNReLU(CONV, NORM, nn.ReLU())
    graph = check_rewrite(FuseConvNormActivation(), model, nn.Sequential(fused), IMAGE)
    mean = graph.get_buffer("1.running_mean").clone()

    graph.train()(IMAGE).sum().backward()

    assert not torch.equal(graph.get_buffer("1.running_mean"), mean)
    assert graph.get_parameter("0.weight").grad is not None


def test_refuses_a_norm_without_statistics() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)

    check_refusal(
        FuseConvNormActivation(),
        before=nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval(),
        because="keeps no running statistics",
    )
