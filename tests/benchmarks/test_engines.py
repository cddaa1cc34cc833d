import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import engines
from benchmarks.engine_cases import CANDIDATES, EngineCase, cases
from benchmarks.engine_reference import Reference
from benchmarks.engines import CHOSEN, block_for, verdict
from embedl_deploy.cli.model_sources import LoadedModel
from embedl_deploy.deployment import lower
from embedl_deploy.tuning.machine import JsonValue
from embedl_deploy.tuning.measure import Timing

X = torch.linspace(-1, 1, 8).reshape(2, 4)


def timing(ms: float) -> Timing:
    return Timing(median_ms=ms, p10_ms=ms, p90_ms=ms, calls=60, block_medians_ms=(ms,) * 3)


def test_every_model_meets_every_precision_and_batch() -> None:
    found = {case.name for case in cases("")}

    for model in ("ResNet-50", "MobileNetV3-L", "ViT-B/16", "BERT-base, 128 tokens", "MiniLM"):
        for batch in (1, 8):
            assert {f"{model}, batch {batch}, {p}" for p in ("fp32", "bf16", "int8")} <= found
    assert {case.precision for case in cases("", "cuda")} == set(CANDIDATES["cuda"])
    assert [case.name for case in cases("resnet 1, int8")] == ["ResNet-50, batch 1, int8"]


def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run_case(case: EngineCase, *_: object) -> dict[str, JsonValue]:
        ran.append(case.name)
        if len(ran) == 1:
            raise RuntimeError("no memory")
        return {"engines": {}}

    monkeypatch.setattr(engines, "run_case", run_case)
    output = tmp_path / "engines.json"
    monkeypatch.setattr(sys, "argv", ["engines", "--only", "minilm 1,", "--output", str(output)])

    engines.main()
    engines.main()

    names = [f"MiniLM, batch 1, {precision}" for precision in ("fp32", "bf16", "int8")]
    assert ran == [*names, names[0]]
    assert json.loads(output.read_text()) == {name: {"engines": {}} for name in names}


def test_the_choice_is_held_against_the_best_it_was_made_from() -> None:
    case = next(cases("minilm 1, fp32"))
    chosen = lower(nn.Linear(4, 4).eval(), (X,), engines="eager", choose="measure")
    first, second, *_ = (candidate.name for candidate in case.candidates)
    timings = {first: timing(2.0), second: timing(1.0), "another": timing(0.1)}

    fast = verdict(case, {**timings, CHOSEN: timing(1.02)}, chosen)
    slow = verdict(case, {**timings, CHOSEN: timing(1.04)}, chosen)

    assert fast["best_single_engine"] == second
    assert (fast["at most 1.03 times slower"], slow["at most 1.03 times slower"]) == (True, False)


def test_errors_are_taken_against_the_model() -> None:
    model = nn.Linear(4, 4).eval()
    reference = Reference.of(LoadedModel("linear", model, (X,)), batch=2)

    def nothing(x: Tensor) -> Tensor:
        return torch.zeros(*x.shape[:-1], 4)

    assert len(reference.inputs) == 2
    assert reference.error(model) == 0.0
    assert reference.error(nothing) == pytest.approx(1.0)


def test_blocks_fit_the_seconds() -> None:
    def slow(count: int) -> list[float]:
        return [1.0] * count

    def fast(count: int) -> list[float]:
        return [1e-4] * count

    assert block_for({"slow": slow, "fast": fast}, 20.0) == 4
    assert block_for({"slow": slow}, 1.0) == 3
    assert block_for({"fast": fast}, 20.0) == 20
