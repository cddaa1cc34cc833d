import pytest
import torch
from torch import Tensor, nn


class AddsItsInput(nn.Module):
    """A layer that adds what it reads: one value is two arguments of its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.body(x)) + x)


@pytest.fixture(name="adds_its_input")
def adds_its_input_fixture() -> nn.Module:
    """Returns a residual convolution of three channels, in eval mode."""
    torch.manual_seed(0)
    return AddsItsInput().eval()
