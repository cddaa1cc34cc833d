"""A small residual network, trained there and then on scikit-learn's handwritten digits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.cli.random_weights import seeded
from embedl_deploy.errors import MissingDependencyError

IMAGE_SIZE = 16
HELD_OUT_EVERY = 4


@dataclass(frozen=True)
class Digits:
    """Images of handwritten digits, split into a part to train on and a part held out."""

    train_images: Tensor
    """Shape (n, 1, 16, 16), in [-1, 1], float32."""

    train_labels: Tensor
    """Shape (n,), 0 to 9, int64."""

    test_images: Tensor
    test_labels: Tensor


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with norms, and a shortcut around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, in_channels, h, w) to (n, out_channels, h / stride, w / stride)."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class DigitsNet(nn.Module):
    """A residual network of nine convolutions for 16×16 images of digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stage1 = ResidualBlock(width, width, 1)
        self.stage2 = ResidualBlock(width, 2 * width, 2)
        self.stage3 = ResidualBlock(2 * width, 4 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images (n, 1, 16, 16) in [-1, 1] to class scores (n, 10)."""
        x = self.relu(self.norm(self.conv(image)))
        x = self.pool(self.stage3(self.stage2(self.stage1(x))))
        return self.head(torch.flatten(x, 1))


def load_digits() -> Digits:
    """Returns scikit-learn's 1,797 digits, every fourth one held out, enlarged to 16×16."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'embedl-deploy[zoo]'"
        ) from error
    bunch = cast(Mapping[str, NDArray[np.float64]], datasets.load_digits())
    small = torch.tensor(bunch["data"], dtype=torch.float32).reshape(-1, 1, 8, 8)
    enlarged = functional.interpolate(
        small / 8.0 - 1.0, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False
    )
    targets = torch.tensor(bunch["target"], dtype=torch.int64)
    is_held_out = torch.arange(len(targets)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Digits(
        train_images=enlarged[~is_held_out],
        train_labels=targets[~is_held_out],
        test_images=enlarged[is_held_out],
        test_labels=targets[is_held_out],
    )


def train_digits_net(
    digits: Digits,
    *,
    epochs: int = 8,
    batch_size: int = 64,
    seed: int = 0,
    on_epoch: Callable[[int], None] | None = None,
) -> DigitsNet:
    """Returns a network trained on the training part, in eval mode.

    Leaves the process's random state as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        model = DigitsNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    batches = -(-len(digits.train_labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        order = torch.randperm(len(digits.train_labels), generator=generator)
        for rows in torch.tensor_split(order, batches):
            scores = model(digits.train_images[rows])
            loss = functional.cross_entropy(scores, digits.train_labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1)
    return model.eval()


def predicted(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Returns the class that ``model`` gives each image, called with one image at a time."""
    with torch.no_grad():
        return torch.cat([model(image).argmax(1) for image in images.unsqueeze(1)])
