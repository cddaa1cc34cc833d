"""Measures what int8 costs in accuracy, ours beside torchao's and nncf's.

    python -m benchmarks.accuracy.run [row…] [--tools NAME-PART…] [--jobs N] [--output FILE]

Every tool gets the same weights, calibration inputs and test inputs. Each finished row is written
at once, and a row that the file holds from the same commit is not run again: a run that was
stopped goes on where it was. Rows that are not run stay as they are, each with its commit. Rows run
in processes of their own, two at a time, one thread each.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import torch

from benchmarks.accuracy.row import run_row
from benchmarks.accuracy.subjects import ROWS
from benchmarks.accuracy.table import as_table
from benchmarks.accuracy.tools import TOOLS
from benchmarks.accuracy.verdict import Row, bars, mean_ratio
from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.files import write_aside
from embedl_deploy.tuning.machine import JsonValue, commit, machine_info

RESULTS = Path(__file__).parents[1] / "results" / "accuracy.json"


def main() -> int:
    """Runs the rows asked for, returns 1 if one of them failed."""
    arguments = _arguments()
    screen = Screen(as_json=False)
    tools = [tool for tool in TOOLS if _holds(tool, arguments.tools)]
    wanted = [row for row in ROWS if _holds(row, arguments.rows)]
    written = read_rows(arguments.output)
    known = {} if arguments.fresh else finished(written, tools, commit())
    missing = [row for row in wanted if row not in known]
    failed = 0
    for name, row in _run_all(missing, tools, arguments.jobs, screen):
        if row is None:
            failed = 1
            continue
        known[name] = written[name] = row
        rows = {row_name: written[row_name] for row_name in ROWS if row_name in written}
        write_aside(arguments.output, (json.dumps(_document(rows), indent=1) + "\n").encode())
    for name in wanted:
        if name in known:
            screen.show(as_table(name, known[name]))
    screen.note(f"{len(missing)} rows run, {len(wanted) - len(missing)} known: {arguments.output}")
    return failed


def _run_all(
    names: list[str], tools: list[str], jobs: int, screen: Screen
) -> Iterator[tuple[str, Row | None]]:
    with ThreadPoolExecutor(jobs) as waiting:
        work = {waiting.submit(_run_apart, name, tools): name for name in names}
        for done in as_completed(work):
            error = done.exception()
            if error is not None:
                screen.error(f"{work[done]}: {type(error).__name__}: {error}")
            yield work[done], None if error is not None else done.result()


def _run_apart(name: str, tools: list[str]) -> Row:
    """Runs a row in a pool of its own: a process that dies breaks its pool."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_run_alone, name, tools).result()


def _run_alone(name: str, tools: list[str]) -> Row:
    quiet_libraries()
    torch.set_num_threads(1)
    return run_row(name, tools, Screen(as_json=False))


def _document(rows: Mapping[str, Row]) -> dict[str, JsonValue]:
    return {
        "machine": machine_info(),
        "rows": dict(rows),
        "geometric mean of noise over the best peer's": mean_ratio(rows),
        "bars": bars(rows),
    }


def read_rows(output: Path) -> dict[str, Row]:
    """Returns the rows of a file, none if there is no file."""
    if not output.is_file():
        return {}
    return cast("dict[str, Row]", json.loads(output.read_text(encoding="utf-8"))["rows"])


def finished(rows: Mapping[str, Row], tools: list[str], revision: str | None) -> dict[str, Row]:
    """Returns the rows that a clean tree of this revision measured with these tools."""
    if revision is None or revision.endswith("+"):
        return {}
    return {
        name: row
        for name, row in rows.items()
        if row.get("commit") == revision and row.get("asked") == tools
    }


def _holds(name: str, parts: list[str]) -> bool:
    return not parts or any(part in name for part in parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="parts of rows' names (default: all)")
    parser.add_argument("--tools", nargs="*", default=[], help="parts of tools' names")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    parser.add_argument("--fresh", action="store_true", help="run finished rows again")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
