import json
from pathlib import Path

from embedl_deploy.cli.exit_codes import ExitCode
from tests.cli.conftest import Run


def test_what_was_recorded_is_found_again(run: Run, models: str) -> None:
    recorded = run("manifest", "record", "manifest.json", f"{models}:small")
    checked = run("manifest", "check", "manifest.json")

    content = json.loads(Path("manifest.json").read_text())
    assert (recorded.code, checked.code) == (0, 0)
    assert content["models"][f"{models}:small"]["fuse-conv-norm-activation"] == 1
    assert "rewritten as recorded" in checked.output


def test_a_loss_is_explained_and_ends_with_its_own_code(run: Run, models: str) -> None:
    run("manifest", "record", "manifest.json", f"{models}:small")
    content = json.loads(Path("manifest.json").read_text())
    content["models"][f"{models}:small"]["fuse-linear-activation"] = 1
    Path("manifest.json").write_text(json.dumps(content))

    done = run("manifest", "check", "manifest.json")
    as_json = run("manifest", "check", "manifest.json", f"{models}:small", "--json")

    assert done.code == ExitCode.LOSS
    assert "fuse-linear-activation lost, expected 1, got 0" in done.output
    assert "near miss at %head" in done.output
    assert [entry["pattern"] for entry in as_json.json()["lost"]] == ["fuse-linear-activation"]  # pyright: ignore[reportGeneralTypeIssues, reportIndexIssue, reportUnknownVariableType]


def test_a_gain_alone_is_no_failure(run: Run, models: str) -> None:
    run("manifest", "record", "manifest.json", f"{models}:small")
    content = json.loads(Path("manifest.json").read_text())
    content["models"][f"{models}:small"].clear()
    Path("manifest.json").write_text(json.dumps(content))

    done = run("manifest", "check", "manifest.json")

    assert done.code == 0
    assert "fuse-conv-norm-activation gained, expected 0, got 1" in done.output


def test_another_backend_or_model_than_recorded_is_named(run: Run, models: str) -> None:
    run("manifest", "record", "manifest.json", f"{models}:small")

    other = run("manifest", "record", "manifest.json", f"{models}:small", "-b", "tensorrt")
    unknown = run("manifest", "check", "manifest.json", "resnet18")
    missing = run("manifest", "check", "absent.json")

    assert other.code == ExitCode.USAGE
    assert "one file a backend" in " ".join(other.messages.replace("│", " ").split())
    assert unknown.code == ExitCode.REWRITING
    assert "does not hold resnet18" in unknown.messages
    assert missing.code == ExitCode.REWRITING
