import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from embedl_deploy import load_lowered, transform
from embedl_deploy.backend import reset_backends
from embedl_deploy.patterns import Pattern

README = Path(__file__).parents[1] / "README.md"
SCRIPTS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten()
    ).eval()


@pytest.mark.slow
def test_the_export_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = torch.randn(1, 3, 12, 12)
    names: dict[str, object] = {
        "model": net(),
        "image": image,
        "calibration_images": [torch.randn(1, 3, 12, 12) for _ in range(4)],
    }

    exec(SCRIPTS[0], names)
    reset_backends()

    fast = names["fast"]
    assert isinstance(fast, nn.Module)
    assert torch.equal(load_lowered("model.embedl")(image), fast(image))
    assert Path("model_int8.pt2").is_file()


def test_the_pattern_and_its_test_run() -> None:
    names: dict[str, object] = {}

    exec(SCRIPTS[1], names)

    test = names["test_removes_the_second_relu"]
    assert isinstance(test, Callable)
    test()


def test_the_pattern_works_as_an_argument_of_transform() -> None:
    names: dict[str, object] = {}
    exec(SCRIPTS[1], names)
    pattern = names["RemoveReluAfterRelu"]
    assert isinstance(pattern, type)
    assert issubclass(pattern, Pattern)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.ReLU(), nn.ReLU()).eval()

    result = transform(model, (torch.ones(1, 4),), patterns=[pattern])

    assert result.report["applied_count"] == 2


def test_the_scripts_are_as_short_as_promised() -> None:
    export, pattern = (len([line for line in script.splitlines() if line]) for script in SCRIPTS)

    assert export <= 10
    assert pattern <= 14


@pytest.mark.parametrize("placeholder", ["MEASURED", "NOT_YET"])
def test_nothing_is_left_to_fill_in(placeholder: str) -> None:
    assert placeholder not in README.read_text(encoding="utf-8")
