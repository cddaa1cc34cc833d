"""Tunes the example pipelines and times them against bf16 ``torch.compile`` with freezing.

    python -m benchmarks.tuning [--only NAME-PART] [--seconds 60] [--folder DIR] [--output FILE]

Each example script tunes, saves and loads its pipeline in processes of its own (some minutes);
what it wrote into ``--folder`` is used again. Whole pipelines are timed, tokenizer and cropping
included, in rotating blocks of 20 calls, and one JSON file is written.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.example_script import EXAMPLES, example_script
from embedl_deploy import load
from embedl_deploy.files import write_aside
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.tuning.locating import modules_of
from embedl_deploy.tuning.machine import JsonValue, machine_info
from embedl_deploy.tuning.measure import measure_in_rotation, speedups, timed

RESULTS = Path(__file__).parent / "results"
EAGER, TUNED = "eager", "embedl_deploy tuned"
COMPILED, BF16 = "torch.compile", "torch.compile bf16, freezing"
BAR = 1.2

Pipeline = Callable[[object], object]


@dataclass(frozen=True)
class Case:
    """One pipeline."""

    name: str
    script: str
    pipeline: str
    """Its class in the script."""

    item: Callable[[ModuleType], object]
    """Makes what it is called with, from the script's module."""

    def make(self) -> Pipeline:
        """Returns a new pipeline."""
        return getattr(example_script(self.script), self.pipeline)()

    def input(self) -> object:
        """Returns what it is called with."""
        return self.item(example_script(self.script))


def one_text(script: ModuleType) -> object:
    """Returns what the embedder is called with."""
    return script.TEXTS[:1]


def one_image(script: ModuleType) -> object:
    """Returns what the vision pipeline is called with."""
    return script.images(1, 100)


CASES = (
    Case("MiniLM embedder, one text", "tune_minilm", "Embedder", one_text),
    Case("two-stage vision, one image", "tune_vision", "TwoStages", one_image),
)


def main() -> None:
    """Runs the cases asked for."""
    arguments = _arguments()
    document: dict[str, JsonValue] = {"machine": machine_info(), "cases": {}}
    cases: dict[str, JsonValue] = {}
    with _folder(arguments.folder) as folder:
        for case in CASES:
            if arguments.only.lower() in case.name.lower():
                cases[case.name] = run_case(case, Path(folder), arguments.seconds)
                document["cases"] = cases
                content = json.dumps(document, indent=1) + "\n"
                write_aside(arguments.output, content.encode())
    print(f"written to {arguments.output}")


def run_case(case: Case, folder: Path, seconds: float) -> dict[str, JsonValue]:
    """Tunes one pipeline where that was not done, measures it, returns its JSON."""
    path = folder / f"{case.script}.tuned"
    found = tuned(case, path)
    item = case.input()
    contenders: dict[str, Pipeline] = {
        EAGER: case.make(),
        COMPILED: compiled(case, item, bf16=False),
        BF16: compiled(case, item, bf16=True),
        TUNED: tuned_pipeline(case, path),
    }
    expected = _vector(contenders[EAGER](item))
    errors = {
        name: round(relative_error(_vector(call(item)), expected), 5)
        for name, call in contenders.items()
    }
    runners = {name: timed(partial(call, item)) for name, call in contenders.items()}
    timings = measure_in_rotation(runners, max_rounds=12, budget_s=seconds)
    over_bf16 = timings[BF16].median_ms / timings[TUNED].median_ms
    for name, timing in timings.items():
        print(f"{case.name}: {name}: {timing.median_ms:.2f} ms, error {errors[name]}")
    print(f"{case.name}: {over_bf16:.2f} times as fast as bf16 torch.compile with freezing")
    return {
        "times faster than bf16 torch.compile with freezing": over_bf16,
        "bars": {
            f"{BF16} × {BAR}": over_bf16 >= BAR,
            "a fresh process computes the same": found["a fresh process computes the same"],
        },
        "latency": {name: timing.as_json() for name, timing in timings.items()},
        "times_faster_than_eager": dict(speedups(timings, over=EAGER)),
        "relative_error_of_the_output": dict(errors),
        "file_bytes": path.stat().st_size,
        "script": found,
        "seconds_of_measuring": seconds,
    }


def tuned(case: Case, path: Path) -> dict[str, JsonValue]:
    """Runs the example script unless its files are there; returns the report that it wrote."""
    report = path.with_suffix(".json")
    if not (path.exists() and report.exists()):
        script = EXAMPLES / f"{case.script}.py"
        start = time.perf_counter()
        command = [sys.executable, str(script), str(path), "--report", str(report)]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))
        found["seconds of the script"] = round(time.perf_counter() - start, 1)
        report.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(report.read_text(encoding="utf-8"))


def tuned_pipeline(case: Case, path: Path) -> Pipeline:
    """Returns a new pipeline that runs by what was saved."""
    pipeline = case.make()
    load(pipeline, path)
    return pipeline


def compiled(case: Case, item: object, *, bf16: bool) -> Pipeline:
    """Returns a new pipeline whose modules were compiled for ``item``."""
    from torch._inductor import config

    pipeline = case.make()
    for found in modules_of(pipeline):
        if found.depth == 0:
            for place in found.places:
                place.put(_compiled(found.module))

    def call(given: object) -> object:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            return pipeline(given)

    with config.patch(freezing=bf16):
        call(item)
    return call


def _compiled(module: nn.Module) -> nn.Module:
    # A class of its own: two compilations of one class share what the first one compiled.
    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *args: object, **kwargs: object) -> object:
            return self.inner(*args, **kwargs)

    result = Compiled().eval()
    result.compile()
    return result


def _vector(output: object) -> Tensor:
    leaves = cast("list[object]", pytree.tree_leaves(output))
    return next(leaf for leaf in leaves if isinstance(leaf, Tensor)).float()


def _folder(given: Path | None) -> tempfile.TemporaryDirectory[str] | nullcontext[str]:
    if given is None:
        return tempfile.TemporaryDirectory()
    given.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(given))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring per case")
    parser.add_argument("--folder", type=Path, help="where tuned pipelines are kept")
    parser.add_argument("--output", type=Path, default=RESULTS / "tuning.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
