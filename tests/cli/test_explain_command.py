from typing import cast

import pytest

from embedl_deploy.cli.exit_codes import ExitCode
from tests.cli.conftest import Run

Entries = list[dict[str, list[dict[str, object]]]]


def test_it_names_where_a_pattern_fired(run: Run, models: str) -> None:
    done = run("explain", f"{models}:small", "--pattern", "fuse-*")

    assert done.code == 0
    assert "fuse-conv-norm-activation (fusion): fired once" in done.output
    assert "fired at %act" in done.output


def test_it_ranks_near_misses_of_a_pattern_that_did_not_fire(run: Run, models: str) -> None:
    done = run("explain", f"{models}:small", "--pattern", "fuse-linear-activation")

    assert done.code == 0
    assert "fuse-linear-activation (fusion): fired 0 times" in done.output
    assert "near miss at %head: %head fits" in done.output
    assert "'activation'" in done.output


def test_it_says_what_would_be_quantized(run: Run, models: str) -> None:
    done = run("explain", f"{models}:small", "--pattern", "quantize-linear")

    assert "quantize-linear (quantization): fired once" in done.output


def test_a_glob_picks_sites_by_module(run: Run, models: str) -> None:
    here = run("explain", f"{models}:small", "--pattern", "fuse-conv-*", "--node", "ac*", "--json")
    there = run("explain", f"{models}:small", "--pattern", "fuse-conv-*", "--node", "hea*")

    fired = [site for item in cast("Entries", here.json()["patterns"]) for site in item["fired"]]
    assert [site["site"] for site in fired] == ["act"]
    assert "fired at" not in there.output


def test_one_node_is_looked_around(run: Run, models: str) -> None:
    done = run("explain", f"{models}:small", "--pattern", "fuse-conv-norm", "--node", "head")

    assert done.code == 0
    assert "fuse-conv-norm (fusion): fired 0 times" in done.output
    assert "around %head" in done.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--pattern", "fuse-everything", "has no pattern"), ("--node", "absent", "has no node")],
)
def test_an_unknown_pattern_or_node_is_a_wrong_command_line(
    run: Run, models: str, option: str, value: str, message: str
) -> None:
    done = run("explain", f"{models}:small", option, value)

    assert done.code == ExitCode.USAGE
    assert message in " ".join(done.messages.replace("│", " ").split())
