"""Draws the partition of a model that two engines share, for the documentation.

python -m benchmarks.partition_picture [--output docs/partition.svg]
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from embedl_deploy.deployment import lower
from embedl_deploy.lowering import EngineChoice, LoweredModule
from embedl_deploy.report.partition_picture import partition_svg

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class StemAndHead(nn.Module):
    """A convolutional stem in float32, and a head that its author keeps in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
        )
        self.head = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).bfloat16()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        pooled = torch.relu(features).mean((2, 3))
        weights = self.head(pooled.bfloat16()).float()
        return (features * weights.sigmoid()[:, :, None, None]).amax((2, 3))


def shared(engines: list[EngineChoice]) -> LoweredModule:
    """Returns the model, run by the engines."""
    return lower(StemAndHead().eval(), (IMAGE,), engines=engines)


def stem_and_head() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Returns the model with a larger image, for measurements."""
    generator = torch.Generator().manual_seed(1)
    return StemAndHead().eval(), (torch.randn(1, 3, 224, 224, generator=generator),)


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/partition.svg"))
    output: Path = parser.parse_args().output
    output.write_text(partition_svg(shared(["openvino", "inductor"])), encoding="utf-8")


if __name__ == "__main__":
    main()
