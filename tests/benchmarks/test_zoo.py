import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.fused import groups_fused
from benchmarks.zoo.present import groups_present
from embedl_deploy.transformation import transform

ROOT = Path(__file__).parents[2]
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


class Calls(nn.Module):
    """A function of one tensor, with layers."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.layers.items()))


class ByHandGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 * (1.0 + torch.erf(x / 2.0**0.5))


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    return functional.relu(norm(conv(x)))


def residual(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    return functional.relu(norm(conv(x)) + x)


def conv_read_twice(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    y = conv(x)
    return norm(y) + y


def mlp(x: Tensor, linear: nn.Module, act: nn.Module) -> Tensor:
    return act(linear(x))


def by_hand(x: Tensor) -> Tensor:
    scores = (x @ x.transpose(-2, -1) / 8**0.5).masked_fill(torch.eye(5) > 0, -1e9)
    return functional.dropout(scores.softmax(-1), 0.1, False) @ x


def without_softmax(x: Tensor) -> Tensor:
    return (x.relu() @ x.relu().mT) @ x


CASES: dict[str, tuple[nn.Module, Tensor, list[int]]] = {
    "conv, norm, relu": (
        Calls(conv_norm, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)),
        IMAGE,
        [0, 0, 1, 0],
    ),
    "residual": (
        Calls(residual, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)),
        IMAGE,
        [0, 1, 0, 0],
    ),
    "conv read twice": (
        Calls(conv_read_twice, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3)),
        IMAGE,
        [0, 0, 0, 0],
    ),
    "gelu": (Calls(mlp, linear=nn.Linear(8, 8), act=nn.GELU()), ROWS, [0, 0, 0, 1]),
    "gelu by hand": (Calls(mlp, linear=nn.Linear(8, 8), act=ByHandGELU()), ROWS, [0, 0, 0, 1]),
    "quick gelu": (Calls(mlp, linear=nn.Linear(8, 8), act=QuickGELU()), ROWS, [0, 0, 0, 1]),
    "attention by hand": (Calls(by_hand), ROWS, [1, 0, 0, 0]),
    "no softmax": (Calls(without_softmax), ROWS, [0, 0, 0, 0]),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_what_is_present_and_what_is_fused(name: str) -> None:
    model, example, expected = CASES[name]
    model.eval()

    present = groups_present(model, (example,), {})
    fused = groups_fused(transform(model, (example,), backend="tensorrt").model)

    assert [sites.total() for sites in present.values()] == expected
    assert [sites.total() for sites in fused.values()] == expected


@pytest.mark.slow
def test_every_row_is_transformed_and_fused(tmp_path: Path) -> None:
    words = ["torchvision/resnet18", "timm/levit_128s", "transformers/bert", "written/"]
    output = tmp_path / "zoo.json"
    command = [sys.executable, "-m", "benchmarks.zoo.run", *words, "--output", str(output)]

    subprocess.run(command, cwd=ROOT, check=True)

    written = json.loads(output.read_text())
    assert written["summary"]["failed"] == []
    assert written["summary"]["short"] == {}
    assert len(written["rows"]) > len(words)


@pytest.mark.slow
def test_plans_do_not_depend_on_the_hash_seed() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.zoo.determinism",
        "torchvision/resnet18",
        "/swinv2",
        "--workers",
        "2",
    ]

    subprocess.run(command, cwd=ROOT, check=True)
