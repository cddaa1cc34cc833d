"""Measures int8 against eager, torch.compile, torchao PT2E; its error against nncf's.

    python -m benchmarks.latency [--only NAME-PART] [--seconds 60] [--output FILE]

Everything is timed in rotating blocks of 20 calls; torchao runs in a process of its own within the
same rotation. Prints one table per case and writes one JSON file.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import CASES, Case
from benchmarks.nncf_error import nncf_error
from benchmarks.peer_process import PeerProcess
from embedl_deploy.cli.baselines import (
    Model,
    compiled,
    compiled_bf16_freezing,
    eager,
    first_tensor,
    on_inputs,
)
from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.cli.model_sources import LoadedModel, load_model
from embedl_deploy.cli.options import DEFAULT_BACKEND, RunPrecision, quant_config
from embedl_deploy.cli.pipeline import lowered, rewritten
from embedl_deploy.engines import count_int8_kernels
from embedl_deploy.graph.distance import relative_error
from embedl_deploy.report.tables import facts_table, timings_table
from embedl_deploy.tuning.machine import JsonValue, has_amx, machine_info
from embedl_deploy.tuning.measure import BlockRunner, Timing, measure_in_rotation, speedups, timed

RESULTS = Path(__file__).parent / "results"
BF16 = "torch.compile bf16, freezing"
INT8 = "embedl_deploy int8, rest bf16"
INT8_FP32 = "embedl_deploy int8, rest fp32"
PEER = "torchao PT2E int8, rest bf16"
AMX_BAR = 6.5
BF16_BAR = 1.2


def main() -> None:
    """Runs the cases asked for."""
    arguments = _arguments()
    quiet_libraries()
    screen = Screen(as_json=False)
    document: dict[str, JsonValue] = {"machine": machine_info(), "cases": {}}
    cases: dict[str, JsonValue] = {}
    for case in CASES:
        if arguments.only.lower() in case.name.lower():
            cases[case.name] = run_case(case, arguments.seconds, screen)
            document["cases"] = cases
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    Console().print(f"written to {arguments.output}")


def run_case(case: Case, seconds: float, screen: Screen) -> dict[str, JsonValue]:
    """Builds and measures all candidates of one case, prints its table, returns its JSON."""
    loaded = load_model(case.source)
    with screen.step(f"{case.name}: eager and torch.compile"):
        candidates: dict[str, Model] = {
            "eager": eager(loaded.model),
            "torch.compile": compiled(loaded.model, loaded.args, loaded.kwargs),
            BF16: compiled_bf16_freezing(loaded.model, loaded.args, loaded.kwargs),
        }
    with screen.step(f"{case.name}: int8"):
        graph = rewritten(
            loaded,
            backend=DEFAULT_BACKEND,
            calibration=list(loaded.random_inputs(case.calibration_inputs)),
            config=quant_config(case.ranges),
        )
        for name, precision in ((INT8, RunPrecision.INT8), (INT8_FP32, RunPrecision.INT8_FP32)):
            candidates[name] = lowered(graph.graph, loaded.args, loaded.kwargs, precision)
    errors = {name: mean_error(loaded, case, call) for name, call in candidates.items()}
    kernels = {
        name: count_int8_kernels(on_inputs(candidates[name], loaded.args, loaded.kwargs))
        for name in (INT8, INT8_FP32)
    }
    with screen.step(f"{case.name}: torchao PT2E in its own process"):
        peer = PeerProcess(
            "benchmarks.torchao_pt2e",
            case.source,
            str(case.calibration_inputs),
            str(case.test_inputs),
        )
    runners: dict[str, BlockRunner] = {
        name: timed(on_inputs(call, loaded.args, loaded.kwargs))
        for name, call in candidates.items()
    }
    with peer, screen.step(f"{case.name}: measuring in rotating blocks of 20"):
        if "error" not in peer.built:
            runners[PEER] = peer.run_block
            errors[PEER] = float(peer.built["relative_error"])
        timings = measure_in_rotation(runners, max_rounds=12, budget_s=seconds)
    if case.compare_nncf:
        with screen.step(f"{case.name}: nncf on the same weights and inputs"):
            errors["nncf"] = nncf_error(loaded, case, mean_error)
    ratios = speedups(timings, over="eager")
    over_bf16 = timings[BF16].median_ms / timings[INT8].median_ms
    facts: dict[str, JsonValue] = {
        "times faster than eager (int8, rest bf16)": ratios[INT8],
        "times faster than bf16 torch.compile": over_bf16,
        "times faster than torchao PT2E": _over(timings, PEER),
        "share of multiply-accumulates in int8": graph.integer_share,
        "relative errors": {name: round(error, 5) for name, error in errors.items()},
        "kernels per call, by torch.profiler": {
            name: dict(found) for name, found in kernels.items()
        },
        "torchao PT2E": dict(peer.built),
        "bars": {
            **_bars(case, ratios[INT8], over_bf16, _over(timings, PEER)),
            **_kernel_bar(case, kernels[INT8]),
        },
    }
    screen.show(timings_table(timings, "eager", case.name))
    screen.show(facts_table(case.name, [(key, str(value)) for key, value in facts.items()]))
    return {
        **facts,
        "latency": {name: timing.as_json() for name, timing in timings.items()},
        "times_faster_than_eager": dict(ratios),
        "seconds_of_measuring": seconds,
    }


def mean_error(loaded: LoadedModel, case: Case, call: Callable[..., object]) -> float:
    """Returns the mean relative error against fp32 over the case's test inputs."""
    errors: list[float] = []
    with torch.no_grad():
        for args, kwargs in loaded.random_inputs(case.test_inputs, seed=2):
            reference = first_tensor(loaded.model(*args, **kwargs))
            found = first_tensor(call(*args, **kwargs)).to(reference.dtype)
            errors.append(relative_error(found, reference))
    return sum(errors) / len(errors)


def _over(timings: dict[str, Timing], name: str) -> float | None:
    """Returns how many times faster than a candidate int8 is, None if that did not run."""
    found = timings.get(name)
    return None if found is None else found.median_ms / timings[INT8].median_ms


def _bars(
    case: Case, over_eager: float, over_bf16: float, over_peer: float | None
) -> dict[str, JsonValue]:
    bars: dict[str, JsonValue] = {f"bf16 × {BF16_BAR}": over_bf16 >= BF16_BAR}
    bars["not slower than torchao"] = "it did not run" if over_peer is None else over_peer >= 1.0
    if case.compare_nncf:
        bars[f"eager × {AMX_BAR} (with AMX)"] = (
            over_eager >= AMX_BAR if has_amx() else "no AMX here"
        )
    return bars


def _kernel_bar(case: Case, kernels: dict[str, int]) -> dict[str, JsonValue]:
    """Compares counts with the case's, a kernel with a fused add counted with its plain kind."""
    if case.expected_kernels is None:
        return {}
    found = {
        kind: sum(count for name, count in kernels.items() if name.startswith(kind))
        for kind in case.expected_kernels
    }
    return {f"kernels {case.expected_kernels}": found == case.expected_kernels}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring per case")
    parser.add_argument("--output", type=Path, default=RESULTS / "latency.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
