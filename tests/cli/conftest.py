import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from embedl_deploy.cli.main import main


@dataclass(frozen=True)
class Finished:
    """What a run of the command line left behind."""

    code: int
    output: str
    messages: str

    def json(self) -> dict[str, object]:
        return json.loads(self.output)


Run = Callable[..., Finished]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process."""

    def run_command(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["embedl-deploy", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Finished(int(ended.value.code or 0), captured.out, captured.err)

    return run_command


FACTORIES = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))

class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

IMAGE = (torch.ones(1, 3, 8, 8),)

def small():
    return Small().eval(), IMAGE

def training():
    return Small().train(), IMAGE

def branching():
    return Branching().eval(), IMAGE

def wrong_inputs():
    return Small().eval(), (torch.ones(1, 5, 8, 8),)

def images():
    return [torch.randn(1, 3, 8, 8) for _ in range(4)]

def nothing():
    return []

def not_a_number():
    return [torch.full((1, 3, 8, 8), float("nan"))]

def of_another_shape():
    return [torch.zeros(1, 4, 8, 8)]
"""


@pytest.fixture
def models(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes factories importable and the current folder an empty one; returns their module."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "models_of_cli_test.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    return "models_of_cli_test"
