import json
from pathlib import Path

import pytest

from embedl_deploy.cli.output_files import (
    make_folder,
    require_writable,
    write_json,
    written_whole,
)
from embedl_deploy.errors import OutputPathError


def fail_while_writing(path: Path) -> None:
    with written_whole(path) as aside:
        aside.write_text("half")
        raise RuntimeError("power cut")


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with written_whole(tmp_path / "result") as aside:
        aside.write_text("whole")
        assert not (tmp_path / "result").exists()

    assert (tmp_path / "result").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "result").write_text("old")

    with pytest.raises(RuntimeError, match="power cut"):
        fail_while_writing(tmp_path / "result")

    assert (tmp_path / "result").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "figures.json", {"a": [1, 2]})

    assert json.loads((tmp_path / "figures.json").read_text()) == {"a": [1, 2]}


def test_no_path_is_fine() -> None:
    require_writable(None)


def test_a_writable_path_is_left_untouched(tmp_path: Path) -> None:
    require_writable(tmp_path / "result")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [("absent/file", "there is no folder"), (".", "is a folder"), ("/proc/file", "cannot write")],
)
def test_a_path_that_cannot_be_written_is_named(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OutputPathError, match=reason):
        require_writable(Path(path))


def test_json_to_an_impossible_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match="cannot write"):
        write_json(tmp_path / "absent" / "figures.json", {})


def test_a_folder_where_a_file_stands_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    with pytest.raises(OutputPathError, match="cannot make the folder"):
        make_folder(tmp_path / "taken")
