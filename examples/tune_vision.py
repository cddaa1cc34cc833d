"""Tunes a vision pipeline of two stages: one finds where to look, the other says what is there.

    python examples/tune_vision.py vision.tuned            # inspects, wraps, tunes, saves
    python examples/tune_vision.py vision.tuned --load     # loads in this process and runs
    python -m benchmarks.tuning --only vision              # times it against torch.compile

Needs the extra ``zoo``. The networks have random weights, their norms are warmed up.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy import inspect, load, save, tune, wrap
from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas
from embedl_deploy.quantize import QuantConfig
from embedl_deploy.tuning import MinLatencyStrategy

SIDE, CROP = 224, 96


class Finder(nn.Module):
    """A coarse map of where something is, shape (images, 7, 7), from a ResNet-18's features."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.score = nn.Conv2d(512, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Takes images (images, 3, 224, 224)."""
        return self.score(self.features(images)).squeeze(1)


class TwoStages:
    """Finds the liveliest place of an image, cuts it out and classifies it."""

    def __init__(self) -> None:
        define_torchvision_schemas()
        from torchvision.models import mobilenet_v2, resnet18

        torch.manual_seed(0)
        features = nn.Sequential(*list(resnet18().children())[:-2])
        self.stages = {"find": Finder(features), "classify": cast("nn.Module", mobilenet_v2())}
        for name, side in (("find", SIDE), ("classify", CROP)):
            warm_up(self.stages[name], side)

    def __call__(self, image: Tensor) -> tuple[tuple[int, int], Tensor]:
        """Returns the corner of the crop and its logits, shape (1, 1000)."""
        with torch.no_grad():
            place = int(self.stages["find"](image).flatten().argmax())
            top, left = ((SIDE - CROP) * part // 6 for part in divmod(place, 7))
            crop = image[:, :, top : top + CROP, left : left + CROP].contiguous()
            return (top, left), self.stages["classify"](crop)


def warm_up(network: nn.Module, side: int) -> None:
    """Runs a few training passes: norms with fresh statistics give degenerate outputs."""
    network.train()
    with torch.no_grad():
        for seed in range(3):
            network(images(4, seed, side))
    network.eval()


def images(count: int, seed: int, side: int = SIDE) -> Tensor:
    """Returns smooth random images, shape (count, 3, side, side)."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (side, side), mode="bilinear")


def tune_stages(path: Path, engines: list[str] | None, *, int8: bool) -> dict[str, object]:
    """Tunes the pipeline, writes ``path``, returns what came of it."""
    pipeline = TwoStages()
    data = [images(1, seed) for seed in range(8)]
    expected = [pipeline(image)[1] for image in data]

    info = inspect(pipeline, data, number_of_iterations=1)
    print(info.describe())
    strategy = MinLatencyStrategy(engines, QuantConfig() if int8 else None)
    wrap(pipeline, info.get_modules(min_execution_percentage=0.05), strategy=strategy)
    report = tune(pipeline, data)
    print(report.describe())
    found = [pipeline(image)[1] for image in data]
    pairs = zip(found, expected, strict=True)
    cosine = min(float(functional.cosine_similarity(one, two)) for one, two in pairs)
    print(f"smallest cosine to eager: {cosine:.5f}")
    save(pipeline, path)
    return {**info.to_dict(), "tuning": report.to_dict(), "smallest cosine to eager": cosine}


def run_loaded(path: Path) -> Tensor:
    """Loads what was tuned into a new pipeline and returns its logits of one image."""
    pipeline = TwoStages()
    load(pipeline, path)
    return pipeline(images(1, 100))[1]


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--load", action="store_true", help="load the file and run it")
    parser.add_argument("--engines", nargs="*", help="names of engines; all installed if left out")
    parser.add_argument("--float", action="store_true", help="do not try int8")
    parser.add_argument("--report", type=Path, help="where to write what was tuned, as JSON")
    arguments = parser.parse_args()
    if arguments.load:
        torch.save(run_loaded(arguments.path), arguments.path.with_suffix(".pt"))
        return
    found = tune_stages(arguments.path, arguments.engines, int8=not arguments.float)
    here = run_loaded(arguments.path)
    subprocess.run([sys.executable, __file__, str(arguments.path), "--load"], check=True)
    there = torch.load(arguments.path.with_suffix(".pt"))
    found["a fresh process computes the same"] = torch.equal(here, there)
    print(f"a fresh process computes the same: {torch.equal(here, there)}")
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
