"""Measures single layers in int8 against bfloat16, as Inductor runs them, and judges predictions.

    OMP_NUM_THREADS=1 python -m benchmarks.sites [--only NAME-PART] [--seconds 0.4] [--output FILE]

Takes every convolution, linear layer and matrix product of some models, each combination of
shape, attributes and neighbours once, and times it in rotating blocks of 20 calls. What counts is
the tenth percentile, because the machine may be shared, less what calling from Python adds. What
the file holds already is not measured again, unless something disturbed it; ``--again`` starts
anew, ``--judge`` measures nothing. The table of costs is fitted to the sites of ``FITTED``; those
that only ``JUDGED`` have tell how good it is.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.site_judgement import Judgement, family_in, judged, judged_by, wrong_in
from benchmarks.site_rows import (
    FITTED,
    JUDGED,
    RESULTS,
    Row,
    fitted_rows,
    is_measured,
    is_steady,
    judged_rows,
    read,
    rows_in,
    site_in,
    write,
)
from benchmarks.site_timing import measure
from embedl_deploy.backends.x86_costs import X86_VNNI_COSTS
from embedl_deploy.cli.console import quiet_libraries
from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.passes.sites import sites_of
from embedl_deploy.quantization.site import Site
from embedl_deploy.quantize import insert_qdq
from embedl_deploy.transformation import transform
from embedl_deploy.tuning.machine import JsonValue


def main() -> None:
    """Measures what is missing, then judges."""
    arguments = _arguments()
    quiet_libraries()
    torch.set_num_threads(1)
    if arguments.again:
        arguments.output.unlink(missing_ok=True)
    if not arguments.judge:
        _repeat_disturbed(arguments.output, arguments.seconds)
        for source, batch in (*FITTED, *JUDGED):
            if arguments.only.lower() in source.lower():
                _measure_model(arguments.output, source, batch, arguments.seconds)
    _judge(arguments.output)


def sites_in(source: str, batch: int) -> Iterator[Site]:
    """Yields the sites of a model, each kind once, those that a single small module can hold."""
    loaded = load_model(source)
    fused = transform(loaded.model, loaded.args, loaded.kwargs, backend="inductor").model
    found = (site for sites in sites_of(insert_qdq(fused)).values() for site in sites)
    for site in dict.fromkeys(found):
        is_known = not site.activation or hasattr(nn, site.activation)
        if is_known and site.kind != "transposed conv":
            yield in_batches(site, batch)


def in_batches(site: Site, batch: int) -> Site:
    """Returns the site as it is where the model's batch is ``batch`` instead of 1."""
    weight = site.weight_shape
    if site.kind == "matmul":
        weight = (weight[0] * batch, *weight[1:])
    return replace(
        site,
        input_shape=(site.input_shape[0] * batch, *site.input_shape[1:]),
        output_shape=(site.output_shape[0] * batch, *site.output_shape[1:]),
        weight_shape=weight,
    )


def _measure_model(path: Path, source: str, batch: int, seconds: float) -> None:
    document = read(path)
    done, name = cast("list[JsonValue]", document["models"]), f"{source}, batch {batch}"
    if name in done:
        return
    rows = rows_in(document)
    known = {site_in(row) for row in rows}
    for site in sites_in(source, batch):
        if site not in known:
            rows.append(_row(site, source, batch, seconds))
            write(path, document)
    done.append(name)
    write(path, document)
    Console().print(f"{name}: {len(rows)} sites so far")


def _repeat_disturbed(path: Path, seconds: float) -> None:
    """Measures rows again whose calls differ much in time, and keeps the shorter times."""
    document = read(path)
    for row in rows_in(document):
        if is_measured(row) and not is_steady(row):
            again = measure(site_in(row), seconds)
            for key in ("int8_ms", "bf16_ms", "int8_p10_ms", "bf16_p10_ms"):
                row[key] = min(cast("float", row[key]), cast("float", again[key]))
            write(path, document)


def _row(site: Site, source: str, batch: int, seconds: float) -> Row:
    row: Row = {"model": source, "batch": batch, "site": cast("JsonValue", asdict(site))}
    try:
        row.update(measure(site, seconds))
    except Exception as error:  # noqa: BLE001  # Inductor may fail in any way: said in the row
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return row


def _judge(path: Path) -> None:
    document = read(path)
    rows = rows_in(document)
    held_out = judged_rows(rows)
    shown = {
        "fitted": judged(fitted_rows(rows), X86_VNNI_COSTS),
        "held out": judged(held_out, X86_VNNI_COSTS),
        "all": judged([row for row in rows if is_measured(row)], X86_VNNI_COSTS),
    }
    families = judged_by(held_out, X86_VNNI_COSTS, family_in)
    document["judgement"] = {name: found.as_json() for name, found in shown.items()}
    write(path, document)
    Console().print(_table({**shown, **{f"held out, {key}": families[key] for key in families}}))
    for site, measured, predicted in wrong_in(held_out, X86_VNNI_COSTS):
        Console().print(f"measured {measured:.2f}, predicted {predicted:.2f}: {site}")


def _table(judgements: dict[str, Judgement]) -> Table:
    table = Table(title="Is int8 faster than bfloat16? The predicted sign", title_justify="left")
    for column in ("sites", "all", "differ by over 10 %", "sign right", "share", "slower", "found"):
        table.add_column(column, justify="left" if column == "sites" else "right")
    for name, found in judgements.items():
        counts = (found.sites, found.differing, found.right)
        slower = (found.slower, found.slower_found)
        table.add_row(name, *map(str, counts), f"{found.share:.1%}", *map(str, slower))
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--seconds", type=float, default=0.4, help="of measuring per site")
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    parser.add_argument("--judge", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
