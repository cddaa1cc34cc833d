"""A residual network trained here on real images keeps its answers in int8."""

from typing import cast

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.backends.inductor import INDUCTOR
from embedl_deploy.backends.tensorrt import TENSORRT
from embedl_deploy.quantize import (
    CalibrationMethod,
    QuantConfig,
    TensorQuantConfig,
    convert,
    quantize,
)
from embedl_deploy.rewriting.backend import Backend


class DigitsNet(nn.Module):
    """Two residual blocks over 8×8 images."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList([self._block(width) for _ in range(2)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = torch.relu(block(x) + x)
            x = functional.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))

    @staticmethod
    def _block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )


def digits() -> tuple[Tensor, Tensor]:
    data = cast("dict[str, object]", load_digits())
    images = torch.tensor(data["images"], dtype=torch.float32)[:, None] / 16.0
    labels = torch.tensor(data["target"])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


IMAGES, LABELS = digits()
HELD_OUT = slice(1297, None)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = DigitsNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(160):
        batch = torch.randint(0, 1297, (64,), generator=torch.Generator().manual_seed(step))
        loss = functional.cross_entropy(model(IMAGES[batch]), LABELS[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def correct(model: nn.Module) -> int:
    with torch.no_grad():
        return int((model(IMAGES[HELD_OUT]).argmax(1) == LABELS[HELD_OUT]).sum())


def test_the_float_network_has_learned(trained: nn.Module) -> None:
    assert correct(trained) >= 480


@pytest.mark.parametrize("backend", [INDUCTOR, TENSORRT])
@pytest.mark.parametrize(
    "method", [CalibrationMethod.MINMAX, CalibrationMethod.HISTOGRAM, CalibrationMethod.MSE]
)
def test_int8_loses_at_most_one_image_of_five_hundred(
    trained: nn.Module, backend: Backend, method: CalibrationMethod
) -> None:
    config = QuantConfig(activation=TensorQuantConfig(symmetric=False, calibration_method=method))
    calibration = [IMAGES[start : start + 64] for start in range(0, 256, 64)]

    quantized = quantize(
        trained, (IMAGES[HELD_OUT],), config, forward_loop=calibration, backend=backend
    )

    assert correct(quantized) >= correct(trained) - 1
    assert correct(convert(quantized)) == correct(quantized)
