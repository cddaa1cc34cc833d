"""Measures every engine of this machine on the same graphs, and the choice between them.

    python -m benchmarks.engines [--only "resnet batch 1, int8"] [--device cuda] [--again]
                                 [--minutes 30] [--seconds 10] [--output FILE]

All candidates of a case run in one process, in rotating blocks of up to 20 calls. Each case is
merged into the JSON file when it is done, with the machine it was measured on: a run that was
stopped, or whose minutes are over, goes on where it ended.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from rich.console import Console
from torch.fx import GraphModule

from benchmarks.engine_cases import Candidate, EngineCase, cases
from benchmarks.engine_inputs import batched, finished, placed
from benchmarks.engine_reference import Reference
from embedl_deploy.cli.baselines import eager
from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.cli.model_sources import LoadedModel, load_model
from embedl_deploy.cli.options import DEFAULT_BACKEND, quant_config
from embedl_deploy.deployment import lower
from embedl_deploy.errors import EmbedlDeployError
from embedl_deploy.files import write_aside
from embedl_deploy.lowering import EngineChoice, LoweredModule
from embedl_deploy.quantize import quantize
from embedl_deploy.report.tables import timings_table
from embedl_deploy.transformation import transform
from embedl_deploy.tuning.machine import JsonValue, machine_info
from embedl_deploy.tuning.measure import (
    BLOCK,
    BlockRunner,
    Timing,
    measure_in_rotation,
    timed,
    times_slower,
)

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 0.3
"""Largest error of an engine against its graph; bfloat16 and int8 steps move by about 0.1."""

EAGER = "eager fp32"
CHOSEN = 'choose="measure"'
CALIBRATION_ROWS = 16
ROUNDS = 4
"""The fewest rounds of blocks; their order rotates."""

ALLOWED_SLOWER = 1.03
"""How much slower than the best single engine the choice may be."""


def main() -> None:
    """Runs the cases asked for that the file lacks."""
    arguments = _arguments()
    quiet_libraries()
    screen, console = Screen(as_json=False), Console()
    output: Path = arguments.output
    wanted = list(cases(arguments.only, arguments.device))
    known = {} if arguments.again else read(output)
    todo = [case for case in wanted if "failed" in known.get(case.name, {"failed": ""})]
    end = time.monotonic() + 60 * arguments.minutes
    for done, case in enumerate(todo):
        if time.monotonic() > end:
            console.print(f"{len(todo) - done} cases are left: run the same command again")
            break
        merge(output, case, _ran(case, arguments.seconds, screen))
    console.print(f"written to {output}")


def read(path: Path) -> dict[str, dict[str, JsonValue]]:
    """Returns the cases in the file."""
    return json.loads(path.read_text()) if path.exists() else {}


def merge(path: Path, case: EngineCase, result: dict[str, JsonValue]) -> None:
    """Puts one case into the file, beside what it holds."""
    document = {**read(path), case.name: result}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, (json.dumps(document, indent=2) + "\n").encode())


def _ran(case: EngineCase, seconds: float, screen: Screen) -> dict[str, JsonValue]:
    """Returns a case's result, or what stopped it: the other cases go on."""
    try:
        return run_case(case, seconds, screen)
    except (EmbedlDeployError, RuntimeError, ValueError, AssertionError, OSError) as error:
        Console().print(f"{case.name} failed: {error}")
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def run_case(case: EngineCase, seconds: float, screen: Screen) -> dict[str, JsonValue]:
    """Builds and measures all candidates of one case, prints its table, returns its JSON."""
    loaded = placed(batched(load_model(case.model.source), case.batch), case.device)
    with screen.step(f"{case.name}: rewriting"):
        plain, graph = graphs(loaded, case)
    with tempfile.TemporaryDirectory() as folder:
        outcomes: dict[str, LoweredModule | str] = {}
        for candidate in case.candidates:
            with screen.step(f"{case.name}: {candidate.name}"):
                source = plain if candidate.quantizes else graph
                outcomes[candidate.name] = built_by(source, loaded, candidate, Path(folder))
        with screen.step(f"{case.name}: {CHOSEN}"):
            chosen = choice(graph, loaded, case, Path(folder))
    built = {n: found for n, found in outcomes.items() if isinstance(found, LoweredModule)}
    calls = {EAGER: eager(loaded.model), **built, CHOSEN: chosen}
    runners = {n: timed(finished(c, loaded)) for n, c in calls.items()}
    block = block_for(runners, seconds)
    with screen.step(f"{case.name}: measuring in rotating blocks of {block}"):
        timings = measure_in_rotation(
            runners, block=block, min_rounds=ROUNDS, max_rounds=12, budget_s=seconds
        )
    screen.show(timings_table(timings, EAGER, case.name))
    reference = Reference.of(loaded, case.batch)
    return {
        "machine": machine_info(),
        "seconds_of_measuring": seconds,
        "calls_per_block": block,
        "engines": {
            name: facts(reference, timings, name, call)
            for name, call in {EAGER: calls[EAGER], **built}.items()
        },
        "not run": {n: reason for n, reason in outcomes.items() if isinstance(reason, str)},
        CHOSEN: {**facts(reference, timings, CHOSEN, chosen), **verdict(case, timings, chosen)},
    }


def block_for(runners: Mapping[str, BlockRunner], seconds: float) -> int:
    """Returns how many calls in a row, up to 20, let the fewest rounds fit into the time."""
    once = sum(min(run(3)) for run in runners.values())
    return max(3, min(BLOCK, int(seconds / (ROUNDS * once))))


def graphs(loaded: LoadedModel, case: EngineCase) -> tuple[GraphModule, GraphModule]:
    """Returns the transformed graph, and the one of the case's precision."""
    model, args, kwargs = loaded.model, loaded.args, loaded.kwargs
    plain = transform(model, args, kwargs, backend=DEFAULT_BACKEND).model
    if not case.is_quantized:
        return plain, plain
    inputs = list(loaded.random_inputs(max(2, CALIBRATION_ROWS // case.batch)))

    def calibrate(traced: Callable[..., object]) -> None:
        for own_args, own_kwargs in inputs:
            traced(*own_args, **own_kwargs)

    config = quant_config(case.model.ranges)
    quantized = quantize(
        model, args, config, calibrate, True, kwargs=kwargs, backend=DEFAULT_BACKEND
    )
    return plain, quantized


def choice(
    graph: GraphModule, loaded: LoadedModel, case: EngineCase, folder: Path
) -> LoweredModule:
    """Returns the graph run by the engine, or the engines, that measuring chooses."""
    args, kwargs, engines = loaded.args, loaded.kwargs, contestants(case)
    return lower(graph, args, kwargs, engines, "measure", tolerance=TOLERANCE, cache_dir=folder)


def contestants(case: EngineCase) -> list[EngineChoice]:
    """Returns the engines that the choice is made from: those given the same graph."""
    same = [one for one in case.candidates if not one.quantizes]
    return [config for one in same or case.candidates[:1] for config in one.engines]


def built_by(
    graph: GraphModule, loaded: LoadedModel, candidate: Candidate, folder: Path
) -> LoweredModule | str:
    """Returns the graph run by a candidate, or why its first engine does not run it."""
    choices = cast("list[EngineChoice]", list(candidate.engines))
    try:
        found = lower(
            graph, loaded.args, loaded.kwargs, choices, tolerance=TOLERANCE, cache_dir=folder
        )
    except EmbedlDeployError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    failures = [failure for part in found.report.subgraphs for failure in part.failures]
    if failures:
        return f"{failures[0].engine}: {failures[0].reason}"
    wanted = type(candidate.engines[0]).__name__.removesuffix("EngineConfig").lower()
    if wanted not in found.report.engines.values():
        return "; ".join(
            dict.fromkeys(r.reason for r in found.report.refusals if r.engine == wanted)
        )
    return found


def facts(
    reference: Reference,
    timings: Mapping[str, Timing],
    name: str,
    call: Callable[..., object],
) -> dict[str, JsonValue]:
    """Returns latency, error, and what building took."""
    found: dict[str, JsonValue] = {
        "times_faster_than_eager": timings[EAGER].median_ms / timings[name].median_ms,
        "latency": timings[name].as_json(),
        "relative_error": reference.error(call),
    }
    if isinstance(call, LoweredModule):
        parts = call.report.subgraphs
        found["engines"] = dict(call.report.engines)
        found["eager_nodes"] = len(call.report.eager_nodes)
        found["build_seconds"] = call.report.build_seconds
        found["artifact_bytes"] = sum(part.artifact_bytes or 0 for part in parts)
        found["int8_kernels"] = [dict(part.kernels) for part in parts]
    return found


def verdict(
    case: EngineCase, timings: Mapping[str, Timing], chosen: LoweredModule
) -> dict[str, JsonValue]:
    """Returns the choice beside the best of the engines it was made from."""
    of_these = [one.name for one in case.candidates if not one.quantizes]
    singles = {name: timings[name].median_ms for name in of_these if name in timings}
    if not singles:
        return {"best_single_engine": None}
    best = min(singles, key=lambda name: singles[name])
    slower = times_slower(timings[CHOSEN], timings[best])
    data = cast("dict[str, JsonValue]", chosen.report.to_dict())
    return {
        "best_single_engine": best,
        "times_slower_than_best": slower,
        f"at most {ALLOWED_SLOWER} times slower": slower <= ALLOWED_SLOWER,
        "whole": data["whole"],
        "measurements": [
            {
                "engine": m.engine,
                "median_ms": m.median_ms,
                "relative_error": m.relative_error,
                "artifact_bytes": m.artifact_bytes,
                "resident_bytes": m.resident_bytes,
            }
            for part in chosen.report.subgraphs
            for m in part.measurements
        ],
        "dropped": [
            f"{failure.engine}: {failure.reason}"
            for part in chosen.report.subgraphs
            for failure in part.failures
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="words of a case's name")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--again", action="store_true", help="also cases that the file holds")
    parser.add_argument("--minutes", type=float, default=30.0, help="after which no case starts")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring per case")
    parser.add_argument("--output", type=Path, default=RESULTS / "engines.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
