import json
from pathlib import Path

import pytest

from embedl_deploy.cli.exit_codes import ExitCode
from tests.cli.conftest import Run


def test_only_and_skip_select_rewrites(run: Run, models: str) -> None:
    whole = run("transform", f"{models}:small", "--json")
    without = run("transform", f"{models}:small", "--skip", "fuse-conv-norm-activation", "--json")
    nothing = run("transform", f"{models}:small", "--only", "conversion", "--json")

    assert whole.json()["report"] != without.json()["report"]
    assert "left out by skip='fuse-conv-norm-activation'" in without.output
    assert "fuse-conv-norm" in without.output
    assert "no word of only=['conversion'] means it" in nothing.output


def test_a_saved_plan_is_replayed(run: Run, models: str) -> None:
    saved = run(
        "transform", f"{models}:small", "--skip", "norm", "--save-plan", "plan.json", "--json"
    )
    replayed = run("transform", f"{models}:small", "--plan", "plan.json", "--json")

    sites = json.loads(Path("plan.json").read_text())["sites"]
    assert (saved.code, replayed.code) == (0, 0)
    assert [site["apply"] for site in sites if "conv" in site["nodes"]] == [False] * len(
        [site for site in sites if "conv" in site["nodes"]]
    )
    assert '"made": "fused' not in replayed.output
    assert "left out by skip='norm'" in replayed.output


def test_a_plan_with_a_site_that_is_gone_is_applied_where_asked(run: Run, models: str) -> None:
    run("transform", f"{models}:small", "--save-plan", "plan.json", "--json")
    plan = json.loads(Path("plan.json").read_text())
    plan["sites"][0].update(nodes=["gone"], fingerprint=None)
    Path("plan.json").write_text(json.dumps(plan))

    refused = run("transform", f"{models}:small", "--plan", "plan.json")
    replayed = run("transform", f"{models}:small", "--plan", "plan.json", "--no-strict", "--json")

    assert refused.code == ExitCode.REWRITING
    assert "--no-strict" in refused.messages
    assert replayed.code == 0
    assert "the saved plan holds" in replayed.output


def test_quantize_leaves_skipped_modules_and_patterns_in_float(run: Run, models: str) -> None:
    whole = run("quantize", f"{models}:small", "--data", f"{models}:images", "--json")
    module = run(
        "quantize", f"{models}:small", "--data", f"{models}:images", "--skip", "head", "--json"
    )
    pattern = run(
        "quantize", f"{models}:small", "--data", f"{models}:images", "--skip", "*linear", "--json"
    )

    assert "quantize-linear" in whole.output
    assert "skip.weight names it by" in module.output
    assert "quantize-linear" not in pattern.output
    assert "quantize-conv" in pattern.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--skip", "fuse-nothing"), ExitCode.USAGE, "means no pattern, stage or module"),
        (("--plan", "p.json", "--only", "fusion"), ExitCode.USAGE, "not both"),
        (("--no-strict",), ExitCode.USAGE, "give --plan with it"),
        (("--plan", "absent.json"), ExitCode.REWRITING, "cannot be read"),
        (("--save-plan", "no/plan.json"), ExitCode.FILE, "there is no folder no"),
    ],
)
def test_a_choice_that_cannot_be_is_named(
    run: Run, models: str, arguments: tuple[str, ...], code: ExitCode, message: str
) -> None:
    done = run("transform", f"{models}:small", *arguments)

    assert done.code == code
    assert message in " ".join(done.messages.replace("│", " ").split())
    assert list(Path.cwd().iterdir()) == []
