import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from embedl_deploy.quantization import QuantConfig
from embedl_deploy.quantization.config_file import config_from_json
from embedl_deploy.quantization.search_result import (
    Budget,
    FrontierPoint,
    GroupChoice,
    PrecisionSearchResult,
    Trial,
)
from embedl_deploy.report.search_picture import frontier_svg
from embedl_deploy.report.search_tables import (
    frontier_table,
    groups_table,
    search_facts,
    search_json,
)


def result(frontier: tuple[FrontierPoint, ...] | None = None) -> PrecisionSearchResult:
    failed = Trial(("a", "b"), 100, 0.5, 1.25)
    chosen = Trial(("a",), 150, 0.75, 1.5)
    return PrecisionSearchResult(
        config=QuantConfig(),
        budget=Budget("max_drop", 0.125),
        groups=(
            GroupChoice("a", "FusedConv", ("conv",), True, 1e-6, 3.0, 64, "it saves 3 ms"),
            GroupChoice("b", "FusedLinear", ("fc",), False, 1e-2, 1.0, 8, "left in float"),
        ),
        fixed={"matmul": "no rule names it"},
        frontier=frontier
        or (
            FrontierPoint(2, 4.0, 1.0001e-2, failed),
            FrontierPoint(1, 3.0, 1e-6, chosen),
            FrontierPoint(0, 0.0, 0.0),
        ),
        is_exact=True,
        chosen=chosen,
        float_metric=0.8125,
        float_bytes=400,
        trials=(failed, chosen),
        batches=7,
        float_latency_ms=2.0,
    )


def text_of(*tables: object) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(*tables)
    return captured.get()


def test_tables_show_every_group_choice_and_figure() -> None:
    found = result()

    text = text_of(groups_table(found), frontier_table(found), search_facts(found))

    assert all(group.name in text and group.reason in text for group in found.groups)
    assert "always: no rule names it" in text
    assert "max_drop=0.125" in text
    assert "1 of 2" in text
    assert "0.75, 0.8125 in float" in text
    assert "1.500 ms, 2.000 in float" in text


def test_the_json_holds_a_configuration_and_plain_values() -> None:
    document = json.loads(json.dumps(search_json(result())))

    assert config_from_json(document["config"]) == QuantConfig()
    assert document["drop"] == 0.0625
    assert [trial["metric"] for trial in document["trials"]] == [0.5, 0.75]


def test_the_picture_marks_what_was_tried_and_what_was_chosen() -> None:
    root = ElementTree.fromstring(frontier_svg(result()))
    dots = {
        "".join(group.find("{*}title").itertext()): group.find("{*}circle")  # type: ignore[union-attr]
        for group in root.findall("{*}g")
    }

    failed, chosen, nothing = (dot for dot in dots.values() if dot is not None)
    assert list(dots)[1].startswith("1 quantized, saves 3, error 1e-06, metric 0.75")
    assert failed.get("stroke") != chosen.get("stroke") == chosen.get("fill")
    assert (
        float(str(failed.get("cx"))) > float(str(chosen.get("cx"))) > float(str(nothing.get("cx")))
    )
    assert (
        float(str(failed.get("cy"))) < float(str(chosen.get("cy"))) <= float(str(nothing.get("cy")))
    )


@pytest.mark.parametrize("error", [0.0, 1e-300, 1e5])
def test_a_frontier_of_one_point_is_drawn_inside_the_picture(error: float) -> None:
    root = ElementTree.fromstring(frontier_svg(result((FrontierPoint(0, 0.0, error),))))
    circle = root.find("{*}g/{*}circle")

    assert circle is not None
    assert 0.0 <= float(str(circle.get("cx"))) <= 640.0
    assert 0.0 <= float(str(circle.get("cy"))) <= 400.0
