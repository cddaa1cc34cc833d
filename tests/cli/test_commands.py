from pathlib import Path
from typing import cast

import torch

from tests.cli.conftest import Run


def test_transform_reports_stages_and_difference(run: Run, models: str) -> None:
    done = run("transform", f"{models}:small", "--json")

    report = done.json()
    assert done.code == 0
    assert "fuse-conv-norm-activation" in str(report["report"])
    assert float(str(report["relative_error"])) < 1e-4


def test_transform_prints_a_table_and_the_graph(run: Run, models: str) -> None:
    done = run("transform", f"{models}:small", "--graph", "--backend", "tensorrt")

    assert done.code == 0
    assert "fuse-conv-norm-activation" in done.output
    assert "%x" in done.output


def test_transform_saves_a_program_that_computes_the_same(run: Run, models: str) -> None:
    done = run("transform", f"{models}:small", "--output", "small.pt2")

    saved = torch.export.load("small.pt2").module()
    assert done.code == 0
    assert saved(torch.ones(1, 3, 8, 8)).shape == (1, 2)


def test_a_saved_program_can_be_transformed(run: Run, models: str) -> None:
    run("transform", f"{models}:small", "--output", "small.pt2")

    done = run("transform", "small.pt2", "--json")

    assert done.code == 0


def test_quantize_calibrates_on_the_users_data(run: Run, models: str) -> None:
    done = run("quantize", f"{models}:small", "--data", f"{models}:images", "--json")

    report = done.json()
    assert done.code == 0
    assert report["calibration_inputs"] == 4
    assert "quantize-conv" in str(report["report"])
    assert 0.0 < float(str(report["relative_error"])) < 0.2


def test_quantize_says_which_layers_int8_makes_slower(run: Run, models: str) -> None:
    shown = run("quantize", f"{models}:small").output
    report = run("quantize", f"{models}:small", "--json").json()

    assert "2 layers predicted slower in int8 than in bfloat16" in shown
    slower = cast("list[dict[str, float]]", report["predicted_slower"])
    assert len(slower) == 2
    assert all(layer["int8_ms"] > layer["bf16_ms"] > 0.0 for layer in slower)


def test_quantize_saves_a_program(run: Run, models: str) -> None:
    done = run("quantize", f"{models}:small", "--output", "small.pt2")

    assert done.code == 0
    assert Path("small.pt2").is_file()
