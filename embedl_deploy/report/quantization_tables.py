"""What quantization reached and what it cost, as tables."""

from collections.abc import Iterable

from rich.table import Table
from torch.fx import Node

from embedl_deploy.graph.nodes import module_path
from embedl_deploy.quantization.costs import Prediction
from embedl_deploy.quantization.report import LayerQuality, QuantizationReport
from embedl_deploy.report.tables import facts_table

_SHOWN = 10
"""Rows of a table that could have hundreds."""


def quality_table(
    layers: Iterable[LayerQuality], title: str = "Rounding errors, layer by layer"
) -> Table:
    """Returns one row per layer, in the order given.

    The gain is how many times faster int8 is expected to be than bfloat16, below 1 where slower.
    """
    table = Table(title=title, title_justify="left")
    for column in (
        "layer",
        "precision",
        "MACs",
        "SNR dB",
        "alone",
        "of the output's error",
        "gain",
    ):
        is_text = column in ("layer", "precision")
        table.add_column(column, justify="left" if is_text else "right")
    table.add_column("why in float")
    for layer in layers:
        table.add_row(
            layer.module or layer.node,
            layer.precision,
            f"{layer.macs:,}",
            _decibels(layer.snr_db),
            _decibels(layer.own_snr_db),
            f"{layer.output_share:.1%}" if layer.output_share else "",
            "" if layer.prediction is None else f"{layer.prediction.gain:.2f}×",
            layer.reason or "",
        )
    return table


def precision_table(report: QuantizationReport, title: str = "Precisions") -> Table:
    """Returns the shares of multiply-accumulates and of bytes, and the output's error."""
    rows = [
        *(
            (f"multiply-accumulates in {name}", f"{report.share_of_macs(name):.1%}")
            for name in report.macs
        ),
        *((f"bytes of parameters in {name}", f"{size:,}") for name, size in report.bytes.items()),
        *_speed_rows(report),
        ("signal-to-noise of the output", f"{report.output_snr_db:.1f} dB"),
        ("measured on", f"{report.batches} batches"),
    ]
    return facts_table(title, rows)


def slower_table(layers: Iterable[tuple[Node, Prediction]]) -> Table:
    """Returns one row per int8 layer that bfloat16 is expected to run faster, the first few."""
    rows = list(layers)
    title = f"{len(rows)} layers predicted slower in int8 than in bfloat16"
    table = Table(title=title, title_justify="left")
    for column in ("layer", "int8 µs", "bf16 µs", "times slower"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    table.add_column("why")
    for node, found in rows[:_SHOWN]:
        times = (
            f"{1e3 * found.int8_ms:.0f}",
            f"{1e3 * found.bf16_ms:.0f}",
            f"{1 / found.gain:.2f}",
        )
        table.add_row(module_path(node) or node.name, *times, found.reason)
    if len(rows) > _SHOWN:
        table.add_row(f"and {len(rows) - _SHOWN} more")
    return table


def _speed_rows(report: QuantizationReport) -> list[tuple[str, str]]:
    slower = report.predicted_slower()
    shown = ", ".join(layer.module or layer.node for layer in slower[:5])
    return [("predicted slower in int8", f"{len(slower)} layers: {shown}")] if slower else []


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
