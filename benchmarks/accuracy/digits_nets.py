"""Three small families of networks that learn scikit-learn's digits in well under a minute."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.cli.demo.digits import DigitsNet
from embedl_deploy.cli.random_weights import seeded

Epochs = int


class SqueezeExcitation(nn.Module):
    """Scales each channel by what the mean over the image says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.up(scale))


class InvertedResidual(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
        )
        self.excite = SqueezeExcitation(wide)
        self.project = nn.Sequential(
            nn.Conv2d(wide, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.is_residual = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.is_residual else y


class DepthwiseNet(nn.Module):
    """Depthwise-separable, with hard-swish and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        blocks = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1)]
        self.blocks = nn.Sequential(*[InvertedResidual(*sizes) for sizes in blocks])
        self.head = nn.Sequential(nn.Linear(40, 64), nn.Hardswish(), nn.Linear(64, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class DigitsTransformer(nn.Module):
    """A vision transformer over sixteen patches of 4×4 pixels."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, 0.0, functional.gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], Epochs]] = {
    "residual": (DigitsNet, 8),
    "depthwise": (DepthwiseNet, 16),
    "transformer": (DigitsTransformer, 40),
}
"""How to build each, and how many times its training goes over the images."""


def trained(name: str, images: Tensor, labels: Tensor, *, seed: int = 0) -> nn.Module:
    """Returns the net of that name trained on ``images``, in eval mode.

    Args:
        name: A key of ``NETS``.
        images: Shape (n, 1, 16, 16), in [-1, 1].
        labels: Shape (n,), 0 to 9.
        seed: Of weights, order and shifts; the process's random state is left as it was.
    """
    build, epochs = NETS[name]
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    batches = -(-len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.tensor_split(order, batches):
            scores = model(_shifted(images[rows], generator))
            loss = functional.cross_entropy(scores, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a batch moved by up to one pixel: without it the transformer learns by heart."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return torch.roll(images, (down, right), (2, 3))
