"""Measures what int8 costs in accuracy, ours beside torchao's and nncf's.

    python -m benchmarks.accuracy.run [row…] [--tools NAME-PART…] [--output FILE]

Every tool gets the same weights, calibration inputs and test inputs, in one run. A row's peers are
judged by the one with the least noise. Prints a table, writes one JSON file.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.accuracy.judge import Score, is_significantly_worse, score
from benchmarks.accuracy.subjects import Subject, subjects
from benchmarks.accuracy.tools import TOOLS, Outcome, outputs_of
from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.cli.demo.sentences import mean_cosine, retrieval_agreement
from embedl_deploy.files import write_aside
from embedl_deploy.tuning.machine import JsonValue, machine_info

RESULTS = Path(__file__).parents[1] / "results" / "accuracy.json"
OURS = "embedl_deploy"
ERROR_BAR = 0.9
"""Largest geometric mean of our noise over the best peer's."""


def main() -> None:
    """Runs the rows asked for."""
    arguments = _arguments()
    quiet_libraries()
    screen = Screen(as_json=False)
    rows: dict[str, JsonValue] = {}
    ratios: list[float] = []
    groups = itertools.groupby(subjects(arguments.rows), key=lambda subject: subject.row)
    for name, parts in groups:
        row = run_row(name, parts, _chosen(arguments.tools), screen)
        rows[name] = row
        if "noise over best peer" in row:
            ratios.append(float(str(row["noise over best peer"])))
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
        document: dict[str, JsonValue] = {
            "machine": machine_info(),
            "rows": rows,
            "geometric mean of noise over the best peer's": mean,
            "bars": {f"geometric mean ≤ {ERROR_BAR}": mean is not None and mean <= ERROR_BAR},
        }
        write_aside(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
    Console().print(f"written to {arguments.output}")


def run_row(
    name: str, parts: Iterable[Subject], tools: list[str], screen: Screen
) -> dict[str, JsonValue]:
    """Runs every tool on every part of a row, prints the row's table, returns its JSON."""
    references: list[Tensor] = []
    labels: list[Tensor] = []
    outcomes: dict[str, list[Outcome]] = {tool: [] for tool in tools}
    failures: dict[str, JsonValue] = {}
    is_encoder = False
    for subject in parts:
        is_encoder = subject.is_encoder
        references.append(outputs_of(subject.model, subject.test))
        if subject.labels is not None:
            labels.append(subject.labels)
        for tool in [tool for tool in tools if tool not in failures]:
            with screen.step(f"{name}, {subject.part}: {tool}"):
                try:
                    outcomes[tool].append(TOOLS[tool](subject))
                except Exception as error:  # a peer that fails is a fact to report
                    if tool == OURS:
                        raise
                    failures[tool] = f"{type(error).__name__}: {error}"[:300]
    reference = torch.cat(references)
    ran = [tool for tool in tools if tool not in failures]
    outputs = {tool: torch.cat([o.outputs for o in outcomes[tool]]) for tool in ran}
    scores = {tool: score(outputs[tool], reference) for tool in ran}
    figures: dict[str, dict[str, JsonValue]] = {}
    for tool in ran:
        shares = [o.share for o in outcomes[tool] if o.share is not None]
        figures[tool] = {**scores[tool].as_json(), "int8_share": min(shares, default=None)}
        figures[tool].update(_task(outputs[tool], reference, labels, is_encoder=is_encoder))
    screen.show(_table(name, figures))
    return {"tools": dict(figures), "failed": failures, **_verdict(scores)}


def _task(
    outputs: Tensor, reference: Tensor, labels: list[Tensor], *, is_encoder: bool
) -> dict[str, JsonValue]:
    if labels:
        truth = torch.cat(labels)
        right = float((outputs.argmax(1) == truth).double().mean())
        return {"top1": right, "top1_fp32": float((reference.argmax(1) == truth).double().mean())}
    if is_encoder:
        return {
            "mean_cosine": mean_cosine(outputs, reference),
            "top1_retrieval_agreement": retrieval_agreement(outputs, reference),
            "top10_retrieval_agreement": _top10_agreement(outputs, reference),
        }
    return {}


def _top10_agreement(vectors: Tensor, reference: Tensor) -> float:
    """Returns the mean share of each text's ten nearest others that both embeddings share."""
    found, wanted = (_nearest(tensor) for tensor in (vectors, reference))
    return float((found[:, :, None] == wanted[:, None, :]).any(2).double().mean())


def _nearest(vectors: Tensor) -> Tensor:
    similarity = vectors @ vectors.T
    return similarity.fill_diagonal_(-torch.inf).topk(10, dim=1).indices


def _verdict(scores: Mapping[str, Score]) -> dict[str, JsonValue]:
    peers = {tool: found for tool, found in scores.items() if tool != OURS}
    if OURS not in scores or not peers:
        return {}
    best = min(peers, key=lambda tool: peers[tool].noise)
    mine = scores[OURS]
    return {
        "best peer": best,
        "noise over best peer": mine.noise / peers[best].noise,
        "significantly worse": is_significantly_worse(mine.per_input, peers[best].per_input),
    }


def _table(name: str, figures: Mapping[str, Mapping[str, JsonValue]]) -> Table:
    table = Table(title=name, title_justify="left")
    columns = list(dict.fromkeys(key for row in figures.values() for key in row))
    for column in ("tool", *columns):
        table.add_column(column.replace("_", " "))
    for tool, row in figures.items():
        table.add_row(tool, *(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: JsonValue) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _chosen(parts: list[str]) -> list[str]:
    return [tool for tool in TOOLS if not parts or any(part in tool for part in parts)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="parts of rows' names (default: all)")
    parser.add_argument("--tools", nargs="*", default=[], help="parts of tools' names")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
