"""Quantizes every model of the zoo and writes one JSON row for each: ``make zoo-quantized``."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from benchmarks.zoo.cases import Case
from benchmarks.zoo.coverage import Count, Uncovered, converted_macs, float_macs
from benchmarks.zoo.run import chosen, prepared
from benchmarks.zoo.workers import on_each
from embedl_deploy.backends.registry import resolve_backend
from embedl_deploy.files import write_aside
from embedl_deploy.graph.nodes import source_line
from embedl_deploy.passes.carried_values import op_name
from embedl_deploy.passes.placement_decisions import RECURRENT_OPS
from embedl_deploy.quantization.placement import Placement
from embedl_deploy.quantize import QuantConfig, check_qdq, convert, quantize
from embedl_deploy.rewriting import SiteRecord
from embedl_deploy.rewriting.backend import Backend
from embedl_deploy.rewriting.records import report_of
from embedl_deploy.tuning.machine import commit, machine_info

ENOUGH = 0.95
NOISY = 0.25
"""A larger error is set beside what white noise of 35 dB behind every layer does to the output."""

REASONS = ("a dtype the target lacks", "a layer the backend's table names", "a user's skip")
"""The only reasons that excuse a product in float."""


def main() -> int:
    """Runs the cases whose name holds one of the given words; all if none is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run only cases whose name holds one of these")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--output", type=Path, default=None, help="where to write the rows")
    parser.add_argument("--resume", action="store_true", help="keep the rows already there")
    parser.add_argument("--largest", type=float, default=None, help="most billion products")
    parser.add_argument("--workers", type=int, default=1, help="how many processes to use")
    options = parser.parse_args()
    rows = earlier_rows(options.output) if options.resume else []
    done = {row["model"] for row in rows}
    order = [case.name for case in chosen([])]
    names = [case.name for case in chosen(options.words) if case.name not in done]
    run = partial(run_case, backend=options.backend, largest=options.largest)
    for row in on_each(run, names, options.workers, in_order=False):
        rows.append(row)
        sys.stdout.write(_line(row) + "\n")
        sys.stdout.flush()
        if options.output is not None:
            rows.sort(key=lambda row: order.index(str(row["model"])))
            content = {"machine": machine_info(), "summary": summarise(rows), "rows": rows}
            write_aside(options.output, (json.dumps(content, indent=1) + "\n").encode())
    summary = summarise(rows)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 1 if any(summary[name] for name in ("failed", "findings", "below")) else 0


def earlier_rows(output: Path | None) -> list[dict[str, object]]:
    """Returns the rows of an earlier run that need no other: no failure, no finding, covered."""
    if output is None or not output.exists():
        return []
    content = json.loads(output.read_text())
    known = [{"commit": content["machine"]["commit"], **row} for row in content["rows"]]
    return [row for row in known if not _falls_short(row) and "left_out" not in row]


def run_case(case: Case, backend: str, largest: float | None = None) -> dict[str, object]:
    """Returns the row of one model; a failure is a row with ``failure``."""
    row: dict[str, object] = {"model": case.name, "backend": backend, "commit": commit()}
    try:
        # What rounding in another order may choose otherwise, quantizing may as well: no kernel
        # of a target takes float64, and in it nothing would be quantized.
        model, args, kwargs = prepared(replace(case, in_float64=False))
        model.requires_grad_(False)  # FlopCounterMode hooks into gradients where there are any
        total, between = float_macs(model, args, kwargs)
        if largest is not None and total > largest * 1e9:
            return {**row, "left_out": f"{total / 1e9:.0f} billion multiply-accumulates"}
        row.update(quantized_row(model, args, kwargs, resolve_backend(backend)))
        row["macs"], row["macs_between_activations"] = total, between
    except Exception as error:  # noqa: BLE001  # the row must say what went wrong, and the run go on
        return {**row, "failure": f"{type(error).__name__}: {error}"[:500]}
    excused = sum(entry["macs"] for entry in row["float"] if entry["reason"] in REASONS)
    reached = row["covered_macs"] + excused
    if row["error"] > NOISY:
        row["error_of_noise"] = round(error_of_noise(model, args, kwargs), 4)
    # What only the converted graph takes for a layer must not make up for one it left in float.
    whole = max(total, row["converted_macs"])
    row["share"] = round(row["covered_macs"] / whole, 4) if whole else 1.0
    row["share_with_excused"] = round(min(1.0, reached / whole), 4) if whole else 1.0
    return row


def quantized_row(
    model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], backend: Backend
) -> dict[str, object]:
    """Quantizes one model on its example inputs and returns what came of it."""
    began = time.perf_counter()
    quantized = quantize(
        model,
        args,
        QuantConfig(smooth=None),
        lambda ready: ready(*args, **kwargs),
        kwargs=kwargs,
        backend=backend,
    )
    seconds = time.perf_counter() - began
    converted = convert(quantized)
    count = converted_macs(converted, args, kwargs)
    with torch.no_grad():
        reference, found = model(*args, **kwargs), converted(*args, **kwargs)
    findings = (*check_qdq(quantized, backend), *check_qdq(converted, backend))
    return {
        "seconds": round(seconds, 2),
        "covered_macs": count.covered,
        "converted_macs": count.total,
        "float": _float_products(count, quantized, backend),
        "findings": [str(finding) for finding in findings[:20]],
        "error": round(_error(found, reference), 4),
    }


def error_of_noise(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    decibels: float = 35.0,
) -> float:
    """Returns the error of the float model where every layer's output has white noise on it.

    Randomly initialised networks may amplify noise from layer to layer. This tells such a model
    from one that is quantized badly, without quantizing anything: int8 leaves 30 to 40 dB.
    """
    generator = torch.Generator().manual_seed(0)

    def add_noise(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        del module, inputs
        noise = torch.randn(output.shape, generator=generator)
        return output + 10 ** (-decibels / 20) * output.square().mean().sqrt() * noise

    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    with torch.no_grad():
        reference = model(*args, **kwargs)
        handles = [layer.register_forward_hook(add_noise) for layer in layers]
        try:
            return _error(model(*args, **kwargs), reference)
        finally:
            for handle in handles:
                handle.remove()


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def _float_products(
    count: Count, quantized: GraphModule, backend: Backend
) -> list[dict[str, object]]:
    """Returns the products in float, largest first, each with its reason."""
    refused = list(report_of(quantized).refusals())
    entries: Counter[tuple[str, str, str, str]] = Counter()
    for item in count.uncovered:
        line = (source_line(item.node) if item.node is not None else None) or ""
        where = line.rpartition("/")[2]
        reason = _reason(item, refused, backend)
        entries[item.op, " and ".join(item.float_operands), where, reason] += item.macs
    names = ("op", "float_operands", "source", "reason")
    return [
        {**dict(zip(names, entry, strict=True)), "macs": macs}
        for entry, macs in entries.most_common()
    ]


def _reason(item: Uncovered, refused: list[SiteRecord], backend: Backend) -> str:
    """Returns the entry of the closed list that excuses a product, or ``""``."""
    assert item.node is not None
    value = item.node.meta.get("val")
    if isinstance(value, Tensor) and value.dtype not in _KNOWN_DTYPES:
        return REASONS[0]
    site = item.node.meta.get("converted_from", item.node.name)
    reasons = [record.reason or "" for record in refused if record.site == site]
    placement = backend.placement if isinstance(backend.placement, Placement) else Placement()
    table = [decision.reason for decision in placement.decisions.values()]
    if op_name(item.node) in RECURRENT_OPS and not placement.decision("recurrent-layer").quantized:
        return REASONS[1]
    if any(reason.startswith("skip.") for reason in reasons):
        return REASONS[2]
    if any(reason in table for reason in reasons):
        return REASONS[1]
    return ""


_KNOWN_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _error(found: object, reference: object) -> float:
    """Returns the largest relative error over the floating-point outputs."""
    pairs = zip(tree_leaves(found), tree_leaves(reference), strict=False)
    errors = [
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in pairs
        if isinstance(b, Tensor) and b.is_floating_point() and a.shape == b.shape
    ]
    return max(errors, default=0.0)


def summarise(rows: list[dict[str, object]]) -> dict[str, object]:
    """Returns the names of the models that fall short, and of what."""
    ran = [row for row in rows if "failure" not in row and "left_out" not in row]
    return {
        "models": len(rows),
        "quantized": len(ran),
        "failed": [row["model"] for row in rows if "failure" in row],
        "left_out": [row["model"] for row in rows if "left_out" in row],
        "commits": dict(Counter(str(row["commit"]) for row in rows)),
        "lowest_share": min((row["share"] for row in ran), default=None),
        "findings": [row["model"] for row in ran if row["findings"]],
        "below": [row["model"] for row in ran if _is_below(row)],
    }


def _is_below(row: Mapping[str, object]) -> bool:
    return float(str(row["share_with_excused"])) < ENOUGH


def _falls_short(row: Mapping[str, object]) -> bool:
    return "failure" in row or ("findings" in row and (bool(row["findings"]) or _is_below(row)))


def _line(row: dict[str, object]) -> str:
    if "failure" in row:
        return f"{row['model']}: FAILED {row['failure']}"
    if "left_out" in row:
        return f"{row['model']}: left out, {row['left_out']}"
    return (
        f"{row['model']}: {row['seconds']} s, share {row['share']:.3f}, "
        f"with excused {row['share_with_excused']:.3f}, error {row['error']}, "
        f"{len(row['findings'])} findings"
    )


if __name__ == "__main__":
    raise SystemExit(main())
