from io import StringIO

from rich.console import Console
from rich.table import Table

from embedl_deploy.lowering.report import FailedBuild, LoweringReport, SubgraphReport
from embedl_deploy.report.tables import facts_table, stages_table, subgraphs_table, timings_table
from embedl_deploy.rewriting import PassRecord, SiteRecord
from embedl_deploy.tuning.measure import summarize


def text_of(table: Table) -> str:
    console = Console(width=160, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def site(name: str, reason: str | None = None) -> SiteRecord:
    return SiteRecord("fusion", "fold-norm", name, (name,), "layer", None, reason)


def test_a_stage_shows_counts_and_reasons() -> None:
    record = PassRecord("fusion", (site("a"), site("b")), (site("c", "%x is also used by %y"),))

    text = text_of(stages_table([record]))

    assert "fold-norm" in text
    assert "%x is also used by %y (%c)" in text


def test_a_stage_without_matches_shows_its_notes() -> None:
    text = text_of(stages_table([PassRecord("calibration", notes=("8 calibrated",))]))

    assert "8 calibrated" in text


def test_latencies_are_compared_with_the_baseline() -> None:
    timings = {"eager": summarize([[0.030]]), "ours": summarize([[0.010]])}

    text = text_of(timings_table(timings, "eager"))

    assert "30.00" in text
    assert "3.00" in text


def test_subgraphs_show_kernels_failures_and_the_eager_rest() -> None:
    subgraph = SubgraphReport(
        name="part_0",
        engine="inductor",
        description="InductorEngine()",
        nodes=("a", "b"),
        inputs=(),
        outputs=(),
        kernels={"qconv": 3},
        failures=(FailedBuild("other", "has no kernel"),),
    )

    text = text_of(subgraphs_table(LoweringReport((subgraph,), ("c",), ())))

    assert "3 qconv; other failed: has no kernel" in text
    assert "the rest" in text


def test_facts_are_pairs() -> None:
    assert "size" in text_of(facts_table("Facts", [("size", "3 MB")]))
