import re
from pathlib import Path

import pytest

from embedl_deploy.cli.exit_codes import ExitCode
from tests.cli.conftest import Run

BAD = [
    (("transform", "resnet51"), ExitCode.MODEL, "did you mean"),
    (("transform", "{}:absent"), ExitCode.MODEL, "no attribute 'absent'"),
    (("transform", "absent.pt2"), ExitCode.MODEL, "there is no file"),
    (("transform", "{}:training"), ExitCode.REWRITING, "in training mode"),
    (("transform", "{}:branching"), ExitCode.TRACING, r"models_of_cli_test\.py"),
    (("transform", "{}:wrong_inputs"), ExitCode.TRACING, "input"),
    (("transform", "{}:small", "-b", "absent"), ExitCode.USAGE, "known backends"),
    (("transform", "{}:small", "-i", "1xthree"), ExitCode.USAGE, "a shape is written like"),
    (("transform", "{}:small", "-o", "no/folder.pt2"), ExitCode.FILE, "there is no folder no"),
    (("quantize", "{}:small", "--data", "{}:nothing"), ExitCode.QUANTIZATION, "never ran"),
    (("quantize", "{}:small", "--data", "{}:not_a_number"), ExitCode.QUANTIZATION, "NaN"),
    (
        ("quantize", "{}:small", "--data", "{}:of_another_shape"),
        ExitCode.QUANTIZATION,
        r"batch 0 .*float32\[1, 4, 8, 8\]\); it was traced with .*float32\[1, 3, 8, 8\]",
    ),
    (("quantize", "{}:small", "--data", "here"), ExitCode.MODEL, "module:function"),
    (("compile", "{}:small", "-o", "."), ExitCode.FILE, "it is a folder"),
    (("bench", "{}:small", "-o", "/dev/null/x"), ExitCode.FILE, "cannot write"),
    (("no-such-command",), ExitCode.USAGE, "No such command"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD)
def test_bad_input_is_named_without_a_traceback(
    run: Run, models: str, arguments: tuple[str, ...], code: ExitCode, message: str
) -> None:
    done = run(*(argument.replace("{}", models) for argument in arguments))

    assert done.code == code
    assert re.search(message, _unwrapped(done.messages))
    assert "Traceback" not in done.messages
    assert list(Path.cwd().iterdir()) == []


def test_with_json_the_error_is_json_too(run: Run, models: str) -> None:
    done = run("transform", f"{models}:training", "--json")

    assert done.code == ExitCode.REWRITING
    assert done.json()["error"] == {
        "kind": "PreconditionError",
        "message": str(dict(done.json()["error"])["message"]),  # pyright: ignore[reportArgumentType,reportCallIssue]
        "exit_code": 5,
    }


def test_a_program_cut_short_is_an_error(run: Run, models: str) -> None:
    run("transform", f"{models}:small", "-o", "whole.pt2")
    Path("short.pt2").write_bytes(Path("whole.pt2").read_bytes()[:2000])

    done = run("transform", "short.pt2")

    assert done.code == ExitCode.MODEL
    assert "cut short" in done.messages


def test_a_file_that_was_there_survives_a_failed_run(run: Run, models: str) -> None:
    Path("kept.pt2").write_text("as it was")

    done = run("quantize", f"{models}:small", "--data", f"{models}:nothing", "-o", "kept.pt2")

    assert done.code == ExitCode.QUANTIZATION
    assert Path("kept.pt2").read_text() == "as it was"
    assert [path.name for path in Path.cwd().iterdir()] == ["kept.pt2"]


def _unwrapped(text: str) -> str:
    """Takes out the frame and the line breaks that a narrow terminal puts into a message."""
    return re.sub(r"[\s│]+", " ", text)
