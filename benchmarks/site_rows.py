"""The file of measured sites: rows, their sites, what disturbed them."""

import json
from pathlib import Path
from typing import cast

from embedl_deploy.quantization.site import Site
from embedl_deploy.tuning.machine import JsonValue, machine_info

RESULTS = Path(__file__).parent / "results" / "sites.json"

FITTED = (
    ("torchvision:resnet50", 1),
    ("torchvision:mobilenet_v3_large", 1),
    ("torchvision:vit_b_16", 1),
    ("torchvision:regnet_y_400mf", 1),
    ("transformers:bert-base", 1),
)
"""Models and batch sizes whose sites the table of costs is fitted to."""

JUDGED = (
    ("torchvision:swin_t", 1),
    ("torchvision:convnext_tiny", 1),
    ("all-MiniLM-L6-v2", 1),
    ("torchvision:efficientnet_b0", 1),
    ("torchvision:resnet18", 1),
    ("torchvision:mobilenet_v2", 1),
    ("torchvision:resnext50_32x4d", 1),
    ("torchvision:shufflenet_v2_x1_0", 1),
    ("torchvision:densenet121", 1),
    ("torchvision:mobilenet_v3_large", 8),
    ("torchvision:resnet50", 8),
    ("transformers:bert-base", 8),
)
"""Those whose sites judge it, and that the fit never reads."""

OVERHEAD_US = {"int8": 11.2, "bf16": 5.5}
"""What calling compiled code from Python adds to a call, by ``python -m benchmarks.site_packages``.

A package built ahead of time, as the engine builds it, does not have it; building one per site
would take a minute each."""

Row = dict[str, JsonValue]


def fitted_rows(rows: list[Row]) -> list[Row]:
    """Returns the rows that the table is fitted to."""
    return [row for row in rows if is_measured(row) and _origin(row) in FITTED]


def judged_rows(rows: list[Row]) -> list[Row]:
    """Returns the rows that judge it."""
    return [row for row in rows if is_measured(row) and _origin(row) not in FITTED]


def site_in(row: Row) -> Site:
    """Returns the site of a row as it was written."""
    fields = cast("dict[str, object]", row["site"])
    return Site(**{key: _tuples(value) for key, value in fields.items()})  # pyright: ignore[reportArgumentType]  # as asdict wrote it


def time_us(row: Row, short: str) -> float:
    """Returns what a site takes in one precision, Python's share taken off."""
    return max(1.0, 1e3 * cast("float", row[f"{short}_p10_ms"]) - OVERHEAD_US[short])


def is_measured(row: Row) -> bool:
    """Tells whether both precisions ran."""
    return "error" not in row


def is_steady(row: Row) -> bool:
    """Tells whether the calls of both precisions took about the same time each."""
    pairs = ((row[f"{name}_ms"], row[f"{name}_p10_ms"]) for name in ("int8", "bf16"))
    return all(cast("float", median) < 1.5 * cast("float", low) for median, low in pairs)


def read(path: Path) -> dict[str, JsonValue]:
    """Returns the document at ``path``, a new one if there is none."""
    if path.exists():
        return cast("dict[str, JsonValue]", json.loads(path.read_text()))
    return {"machine": machine_info(), "models": [], "rows": []}


def rows_in(document: dict[str, JsonValue]) -> list[Row]:
    """Returns the rows themselves: what is appended is in the document."""
    return cast("list[Row]", document["rows"])


def write(path: Path, document: dict[str, JsonValue]) -> None:
    """Writes the document whole or not at all, one row per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    shown = {key: value for key, value in document.items() if key != "rows"}
    lines = ",\n".join(json.dumps(row) for row in rows_in(document))
    aside.write_text(json.dumps(shown, indent=1)[:-2] + f',\n "rows": [\n{lines}\n]}}\n')
    aside.replace(path)


def _origin(row: Row) -> tuple[JsonValue, JsonValue]:
    return row["model"], row["batch"]


def _tuples(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value
