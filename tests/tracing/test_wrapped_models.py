import functools
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from embedl_deploy import transform
from embedl_deploy.patterns import FuseLinearActivation

# torch.compile warns while it traces what reads a layer's output.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

ROWS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class LowRank(nn.Module):
    """A linear layer and an adapter beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.down.T @ self.up.T) * 0.5


class Partial(nn.Module):
    """Calls a part of itself through ``functools.partial``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.call = functools.partial(self.scaled, scale=2.0)

    def scaled(self, x: Tensor, scale: float) -> Tensor:
        return self.layer(x) * scale

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def compiled(layers: nn.Module) -> nn.Module:
    return cast("nn.Module", torch.compile(layers, backend="eager"))


def model(kind: str) -> nn.Module:
    layer: nn.Module = nn.Linear(8, 8)
    if kind == "weight norm":
        parametrizations.weight_norm(layer)
    if kind == "spectral norm":
        parametrizations.spectral_norm(layer)
    if kind == "parametrized":
        parametrize.register_parametrization(layer, "weight", Symmetric())
    if kind == "low rank":
        layer = LowRank(nn.Linear(8, 8))
    if kind == "partial":
        layer = Partial()
    if kind == "compiled":
        layer = nn.Sequential(layer, compiled(nn.Sequential(nn.ReLU(), nn.Linear(8, 8))))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 8), nn.ReLU()).eval()


@pytest.mark.parametrize(
    "kind",
    ["weight norm", "spectral norm", "parametrized", "low rank", "partial", "compiled"],
)
def test_a_wrapped_layer_is_traced_and_its_neighbours_are_fused(kind: str) -> None:
    original, other = model(kind), model(kind)

    result = transform(original, (ROWS,), patterns=[FuseLinearActivation], verify=True)

    assert result.report.applied_count >= 1
    assert list(result.model.state_dict()) == list(original.state_dict())
    torch.testing.assert_close(result.model(ROWS), original(ROWS))
    result.load_state_dict(other.state_dict())
    torch.testing.assert_close(result.model(ROWS), other(ROWS))


def test_a_compiled_model_is_traced_as_it_is() -> None:
    original = compiled(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval())

    result = transform(original, (ROWS,), patterns=[FuseLinearActivation])

    assert result.report.applied_count == 1
    assert list(result.model.state_dict()) == list(original.state_dict())
