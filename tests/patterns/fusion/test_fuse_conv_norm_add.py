import torch
from torch import Tensor, nn

from embedl_deploy.modules import FusedConvBNAdd, FusedConvBNAddAct, FusedConvBNAddReLU
from embedl_deploy.patterns import FuseConvNormAdd, FuseConvNormAddActivation
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_refusal, check_rewrite
from embedl_deploy.tracing import trace

IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A block with a skip connection, the operands of the add in either order."""

    def __init__(self, activation: nn.Module | None = None, skip_first: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.activation = activation or nn.Sequential()
        self.skip_first = skip_first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        z: Tensor = self.activation(x + y if self.skip_first else y + x)
        return z


class Expected(nn.Module):
    """One fused module that reads the input twice."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fused(x, x)
        return y


class AddedToItself(Residual):
    """Doubles the norm's output."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return torch.relu(y + y)


class BroadcastResidual(Residual):
    """Adds one value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return torch.relu(y + x.mean((2, 3), keepdim=True))


class ScaledResidual(Residual):
    """Adds a multiple of the skip connection: another operation, not a residual add."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return torch.relu(torch.add(y, x, alpha=2))


def test_fuses_the_add_in_either_order() -> None:
    for skip_first in (False, True):
        model = Residual(skip_first=skip_first).eval()
        fused = FusedConvBNAdd(model.conv, model.norm, adds_residual=True)

        check_rewrite(FuseConvNormAdd(), model, Expected(fused), IMAGE, count=1)


def test_fuses_the_add_and_the_activation_in_either_order() -> None:
    for skip_first in (False, True):
        model = Residual(nn.ReLU(inplace=True), skip_first).eval()
        fused = FusedConvBNAddReLU(model.conv, model.norm, nn.ReLU(), adds_residual=True)

        check_rewrite(FuseConvNormAddActivation(), model, Expected(fused), IMAGE, count=1)


def test_fuses_other_activations() -> None:
    model = Residual(nn.SiLU()).eval()
    fused = FusedConvBNAddAct(model.conv, model.norm, nn.SiLU(), adds_residual=True)

    check_rewrite(FuseConvNormAddActivation(), model, Expected(fused), IMAGE)


def test_refuses_an_output_added_to_itself() -> None:
    model = AddedToItself().eval()

    check_refusal(FuseConvNormAdd(), model, because="added to itself", example=IMAGE)
    check_refusal(FuseConvNormAddActivation(), model, because="added to itself", example=IMAGE)


def test_refuses_a_residual_that_is_broadcast() -> None:
    model = BroadcastResidual().eval()

    check_refusal(FuseConvNormAdd(), model, because="broadcast from [2, 4, 1, 1]", example=IMAGE)


def test_refuses_a_residual_of_another_dtype() -> None:
    class Mixed(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(self.conv(x))
            return y + x.bfloat16()

    check_refusal(FuseConvNormAdd(), Mixed().eval(), because="bfloat16", example=IMAGE)


def test_does_not_fit_a_scaled_residual() -> None:
    graph = trace(ScaledResidual().eval(), (IMAGE,))

    record = apply_patterns(graph, [FuseConvNormAdd, FuseConvNormAddActivation])

    assert not record.applied
