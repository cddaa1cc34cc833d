import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from embedl_deploy.quantize import load_config
from tests.cli.conftest import Run

METRIC = """
from embedl_deploy.quantize import WeightFakeQuantize

def unquantized(model):
    return -sum(isinstance(module, WeightFakeQuantize) for module in model.modules())

NUMBER = 3
"""


@pytest.fixture
def metric(models: str) -> str:
    del models  # in whose empty folder the file is written
    Path("metric_of_cli_test.py").write_text(METRIC)
    return "metric_of_cli_test:unquantized"


def test_search_saves_what_quantize_takes(run: Run, models: str) -> None:
    data = ("--data", f"{models}:images")
    options = ("--max-bytes", "600", "--output", "config.json", "--picture", "frontier.svg")

    done = run("search", f"{models}:small", *data, *options, "--json")
    report = done.json()
    again = run("quantize", f"{models}:small", *data, "--config", "config.json", "--json")

    assert done.code == 0
    chosen = json.loads(json.dumps(report["chosen"]))
    assert chosen["bytes"] <= 600
    assert chosen["quantized"] == ["conv"]
    assert load_config("config.json").skip.weight == {"head"}
    assert "names it by name pattern 'head'" in str(again.json()["report"])
    assert ElementTree.parse("frontier.svg").getroot().tag.endswith("svg")


def test_search_prints_groups_frontier_and_facts(run: Run, models: str) -> None:
    done = run("search", f"{models}:small", "--max-bytes", "600")

    assert done.code == 0
    assert "Precisions, group by group" in done.output
    assert "max_bytes=600" in done.output
    assert "1 of 2" in done.output
    assert "searching on random numbers" in done.messages


def test_search_takes_the_users_metric(run: Run, models: str, metric: str) -> None:
    done = run("search", f"{models}:small", "--metric", metric, "--max-bytes", "600", "--json")

    assert done.json()["drop"] == 1.0


def test_search_goes_on_from_its_state(run: Run, models: str) -> None:
    command = ("search", f"{models}:small", "--max-bytes", "600", "--state", "state", "--json")
    first = run(*command)

    second = run(*command)

    assert second.json() == first.json()
    assert "sensitivities" in first.messages
    assert "sensitivities" not in second.messages


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "give one of --max-drop"),
        (("--max-drop", "1", "--max-bytes", "9"), 2, "give one of --max-drop"),
        (("--max-drop", "-1"), 2, "max-drop"),
        (("--max-bytes", "9"), 6, "the smallest possible is"),
        (("--max-drop", "1", "--metric", "accuracy"), 3, "named as module:function"),
        (("--max-drop", "1", "--metric", "metric_of_cli_test:NUMBER"), 3, "must be a function"),
    ],
)
def test_search_says_what_is_wrong(
    run: Run, models: str, metric: str, options: tuple[str, ...], code: int, message: str
) -> None:
    del metric  # written for the last of these

    done = run("search", f"{models}:small", *options)

    assert done.code == code
    assert message in " ".join(done.messages.split())


def test_quantize_says_which_configuration_it_cannot_read(run: Run, models: str) -> None:
    Path("config.json").write_text('{"weights": null}')

    done = run("quantize", f"{models}:small", "--config", "config.json")

    assert done.code == 8
    assert "config has no 'weights'" in done.messages
