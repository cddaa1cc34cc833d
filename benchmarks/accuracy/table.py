"""Draws one row of the comparison as a table."""

from collections.abc import Mapping
from typing import cast

from rich.table import Table

from benchmarks.accuracy.verdict import RATIO, Row
from embedl_deploy.tuning.machine import JsonValue


def as_table(name: str, row: Row) -> Table:
    """Returns the figures of every tool, with the verdict in the title."""
    ratio = f", noise {row[RATIO]:.2f} of {row['best peer']}'s" if RATIO in row else ""
    table = Table(title=f"{name}{ratio}", title_justify="left")
    figures = cast("Mapping[str, Mapping[str, JsonValue]]", row["tools"])
    columns = list(dict.fromkeys(key for found in figures.values() for key in found))
    for column in ("tool", *columns):
        table.add_column(column.replace("_", " "))
    for tool, found in figures.items():
        table.add_row(tool, *(_cell(found.get(column)) for column in columns))
    failed = cast("Mapping[str, str]", row["failed"])
    for tool, message in failed.items():
        table.add_row(tool, message[:60])
    return table


def _cell(value: JsonValue) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
