"""Records as tables for a terminal."""

from collections import Counter
from collections.abc import Iterable, Mapping

from rich.table import Table

from embedl_deploy.lowering import LoweringReport
from embedl_deploy.report.json_form import refusal_groups
from embedl_deploy.rewriting import PassRecord
from embedl_deploy.tuning.measure import Timing


def stages_table(records: Iterable[PassRecord], title: str = "Rewrites") -> Table:
    """Returns one row per pattern that was applied or left alone, stage by stage."""
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    table.add_column("pattern")
    table.add_column("applied", justify="right")
    table.add_column("left alone", justify="right")
    table.add_column("why left alone")
    for record in records:
        add_stage_rows(table, record)
        table.add_section()
    return table


def add_stage_rows(table: Table, record: PassRecord) -> None:
    """Adds the rows of one stage to a table with the columns of ``stages_table``."""
    applied = Counter(site.pattern for site in record.applied)
    refusals = refusal_groups(record.refused)
    for pattern, count in applied.most_common():
        table.add_row(record.name, pattern, str(count), "", "")
    for group in refusals:
        reason = f"{group.first} (%{group.sites[0]})" if len(group.sites) == 1 else group.reason
        table.add_row(record.name, group.pattern, "", str(len(group.sites)), reason)
    if not applied and not refusals:
        table.add_row(record.name, "; ".join(record.notes) or "nothing to do", "0", "0", "")


def subgraphs_table(report: LoweringReport, title: str = "Subgraphs") -> Table:
    """Returns one row per subgraph and one for what runs eager."""
    table = Table(title=title, title_justify="left")
    for column in ("subgraph", "engine", "nodes", "build s", "kernels per call"):
        table.add_column(column, justify="right" if column in ("nodes", "build s") else "left")
    for subgraph in report.subgraphs:
        kernels = ", ".join(f"{count} {kind}" for kind, count in subgraph.kernels.items())
        failed = "; ".join(f"{one.engine} failed: {one.reason}" for one in subgraph.failures)
        table.add_row(
            subgraph.name,
            subgraph.description or subgraph.engine,
            str(len(subgraph.nodes)),
            f"{subgraph.build_seconds:.1f}",
            "; ".join(filter(None, (kernels, failed))),
        )
    if report.eager_nodes:
        table.add_row("the rest", "eager", str(len(report.eager_nodes)), "", "")
    return table


def timings_table(timings: Mapping[str, Timing], baseline: str, title: str = "Latency") -> Table:
    """Returns one row per candidate: median, spread, and how many times faster than another."""
    table = Table(title=title, title_justify="left")
    table.add_column("candidate")
    table.add_column("median ms", justify="right")
    table.add_column("10th to 90th", justify="right")
    table.add_column(f"times faster than {baseline}", justify="right")
    for name, timing in timings.items():
        ratio = timings[baseline].median_ms / timing.median_ms
        table.add_row(
            name,
            f"{timing.median_ms:.2f}",
            f"{timing.p10_ms:.2f} to {timing.p90_ms:.2f}",
            f"{ratio:.2f}",
        )
    return table


def facts_table(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Returns a table of two columns: what, and its value."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value")
    for name, value in rows:
        table.add_row(name, value)
    return table
