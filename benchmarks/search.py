"""Searches precisions under a budget and compares them with everything in int8.

    python -m benchmarks.search [--only NAME-PART] [--seconds 60] [--quick] [--output FILE]

Each net is quantized as a whole and as the search says, both are lowered by the same engine, and
timed in rotating blocks of 20 calls. What quantizing a group saves is measured first, kind of group
by kind of group (with --quick it is what ``ProcessorModel`` says). Errors are those of the
lowered models on inputs that neither calibration nor the search has seen. Prints one table per
net, writes one JSON file and one picture per net beside it; nets that are not run stay in the file
as they are, each with its commit.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.accuracy.digits_nets import trained
from benchmarks.accuracy.judge import score
from embedl_deploy import transform
from embedl_deploy.cli.baselines import first_tensor, on_inputs
from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.cli.demo.digits import load_digits
from embedl_deploy.cli.demo.sentences import (
    load_minilm,
    mean_cosine,
    standard_library_docstrings,
    tokenize,
)
from embedl_deploy.cli.options import quant_config
from embedl_deploy.cli.pipeline import BF16_TOLERANCE
from embedl_deploy.deployment import lower
from embedl_deploy.engines import InductorEngineConfig
from embedl_deploy.errors import SearchError
from embedl_deploy.files import write_aside
from embedl_deploy.lowering import EngineChoice, LoweredModule
from embedl_deploy.passes.precision_costs import ProcessorModel
from embedl_deploy.quantize import (
    CalibrationMethod,
    LoweredLatency,
    PrecisionSearchResult,
    QuantConfig,
    quantize,
    search_precision,
)
from embedl_deploy.report.search_picture import frontier_svg
from embedl_deploy.report.search_tables import groups_table
from embedl_deploy.report.tables import facts_table, timings_table
from embedl_deploy.tuning.machine import JsonValue, commit, machine_info
from embedl_deploy.tuning.measure import measure_in_rotation, timed

RESULTS = Path(__file__).parent / "results"
EVERYTHING, FOUND, FLOAT = "everything in int8", "what the search found", "float"
TOKENS = 64

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Net:
    """A trained net, what its search is asked for, and what it is judged on."""

    name: str
    model: nn.Module
    calibration: list[Inputs]
    test: list[Inputs]
    metric: Callable[[nn.Module], float]
    metric_name: str
    max_drop: float
    config: QuantConfig
    engines: list[EngineChoice] | None
    tolerance: float | None


def main() -> None:
    """Runs the nets asked for."""
    arguments = _arguments()
    quiet_libraries()
    screen = Screen(as_json=False)
    builders = {"depthwise digits net": depthwise, "MiniLM": minilm}
    rows = _known_rows(arguments.output)
    for name, build in builders.items():
        if arguments.only.lower() in name.lower():
            with screen.step(f"{name}: loading"):
                net = build(quick=arguments.quick)
            try:
                rows[name] = run_net(net, arguments, screen)
            except SearchError as error:  # a finding like any other
                screen.error(str(error))
                rows[name] = {"no precisions": str(error)}
            document: dict[str, JsonValue] = {"machine": machine_info(), "nets": rows}
            write_aside(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
    Console().print(f"written to {arguments.output}")


def run_net(net: Net, arguments: argparse.Namespace, screen: Screen) -> dict[str, JsonValue]:
    """Searches, builds, measures; prints the tables and returns the JSON of one net."""
    example = net.calibration[0]
    fused = transform(net.model, example, backend="inductor").model
    latency = LoweredLatency(
        example, engines=net.engines, tolerance=net.tolerance, seconds=arguments.seconds / 20
    )
    with screen.step(f"{net.name}: searching"):
        found = search_precision(
            fused,
            net.calibration,
            net.metric,
            max_drop=net.max_drop,
            args=example,
            config=net.config,
            costs=ProcessorModel() if arguments.quick else "measured",
            measure=latency,
            state=arguments.state,
            progress=screen.note,
        )
    models = {
        FLOAT: fused,
        EVERYTHING: _quantized(fused, net, net.config),
        FOUND: _quantized(fused, net, found.config),
    }
    built: dict[str, LoweredModule] = {}
    for name, graph in models.items():
        with screen.step(f"{net.name}: lowering {name}"):
            built[name] = lower(graph, example, engines=net.engines, tolerance=net.tolerance)
    runners = {name: timed(on_inputs(fast, example, {})) for name, fast in built.items()}
    with screen.step(f"{net.name}: measuring in rotating blocks of 20"):
        timings = measure_in_rotation(runners, max_rounds=40, budget_s=arguments.seconds)
    screen.show(timings_table(timings, FLOAT, net.name))
    screen.show(groups_table(found))
    noise = _noises(net, fused, built)
    ratio = timings[EVERYTHING].median_ms / timings[FOUND].median_ms
    row: dict[str, JsonValue] = {
        "commit": commit(),
        **_search_json(net, found),
        "latency": {name: timing.as_json() for name, timing in timings.items()},
        "times faster than everything in int8": ratio,
        "relative error against fp32": dict(noise),
        "bars": {
            "keeps to the budget": found.drop <= net.max_drop,
            "not slower than everything in int8": ratio >= 1.0,
            "closer to fp32 than everything in int8": noise[FOUND] < noise[EVERYTHING],
        },
    }
    screen.show(facts_table(net.name, [(key, str(row[key])) for key in _SHOWN]))
    picture = arguments.output.with_name(f"search_{net.name.split()[0].lower()}.svg")
    write_aside(picture, frontier_svg(found).encode())
    return row


_SHOWN = (
    "budget",
    "metric",
    "groups in float",
    "times faster than everything in int8",
    "relative error against fp32",
    "bars",
)


def depthwise(*, quick: bool) -> Net:
    """MobileNetV3's blocks on scikit-learn's digits, judged by the images it gets right."""
    digits = load_digits()
    images, labels = digits.train_images, digits.train_labels
    kept = len(labels) - 400  # held out from training, to search on
    test = digits.test_images[: 50 if quick else None]
    valid, valid_labels = images[kept:], labels[kept:]

    def top1(model: nn.Module) -> float:
        with torch.no_grad():
            scores = torch.cat([first_tensor(model(image)) for image in valid.unsqueeze(1)])
        return float((scores.argmax(1) == valid_labels).double().mean())

    return Net(
        "depthwise digits net",
        trained("depthwise", images[:kept], labels[:kept]),
        [(image,) for image in images[: 16 if quick else 128].unsqueeze(1)],
        [(image,) for image in test.unsqueeze(1)],
        top1,
        "top-1 on 400 images",
        0.0025,
        quant_config(CalibrationMethod.HISTOGRAM),
        engines=None,
        tolerance=None,
    )


def minilm(*, quick: bool) -> Net:
    """All-MiniLM-L6-v2, judged by the cosine between its embeddings and fp32's."""
    counts = (8, 8, 16) if quick else (48, 100, 500)
    texts = standard_library_docstrings(sum(counts))
    rows = [
        (ids[:, :TOKENS].contiguous(), mask[:, :TOKENS].contiguous())
        for ids, mask in tokenize(texts).rows()
    ]
    calibration, valid, test = rows[: counts[0]], rows[counts[0] : -counts[2]], rows[-counts[2] :]
    model = load_minilm()
    reference = _outputs(model, valid)

    def cosine(found: nn.Module) -> float:
        return mean_cosine(_outputs(found, valid), reference)

    return Net(
        "MiniLM",
        model,
        calibration,
        test,
        cosine,
        f"mean cosine to fp32's embeddings of {len(valid)} texts",
        0.0015,
        quant_config(CalibrationMethod.MINMAX),
        engines=[InductorEngineConfig(autocast_enabled=True, autocast_dtype=torch.bfloat16)],
        tolerance=BF16_TOLERANCE,
    )


def _known_rows(path: Path) -> dict[str, JsonValue]:
    if not path.exists():
        return {}
    document = cast("dict[str, dict[str, JsonValue]]", json.loads(path.read_text()))
    return dict(document["nets"])


def _quantized(fused: GraphModule, net: Net, config: QuantConfig) -> GraphModule:
    return quantize(fused, config=config, forward_loop=net.calibration, freeze_weights=True)


def _outputs(call: Callable[..., object], rows: list[Inputs]) -> Tensor:
    with torch.no_grad():
        return torch.cat([first_tensor(call(*row)).float().clone() for row in rows])


def _noises(net: Net, fused: GraphModule, built: dict[str, LoweredModule]) -> dict[str, float]:
    reference = _outputs(fused, net.test)
    return {name: score(_outputs(fast, net.test), reference).noise for name, fast in built.items()}


def _search_json(net: Net, found: PrecisionSearchResult) -> dict[str, JsonValue]:
    return {
        "budget": str(found.budget),
        "metric": net.metric_name,
        "metric of the float model": found.float_metric,
        "metric found": found.chosen.metric,
        "drop": found.drop,
        "groups": len(found.groups),
        "groups in float": list(found.in_float),
        "milliseconds saved": {group.name: group.saving for group in found.groups},
        "relative squared error": {group.name: group.error for group in found.groups},
        "trials": len(found.trials),
        "exact knapsack": found.is_exact,
        "frontier": [[point.saving, point.error, point.quantized] for point in found.frontier],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a net's name")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring per net")
    parser.add_argument("--quick", action="store_true", help="few inputs, savings from a model")
    parser.add_argument("--state", type=Path, help="goes on from this file of the search")
    parser.add_argument("--output", type=Path, default=RESULTS / "search.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
