import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from embedl_deploy.engines.scratch import run_folder, scratch_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")

_MAKES_ONE = """
import sys, time
from pathlib import Path
from embedl_deploy.engines.scratch import run_folder, scratch_folder

class Owner: ...

owner = Owner()
folder = scratch_folder(owner, Path(sys.argv[1]))
(folder / "package").write_text("x")
print(folder.parent, flush=True)
if len(sys.argv) > 2:
    time.sleep(60)
"""


class Owner:
    """Anything that can be collected."""


def started(parent: Path, *more: str) -> tuple[subprocess.Popen[str], Path]:
    arguments = [sys.executable, "-c", _MAKES_ONE, str(parent), *more]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as told:
        return process, Path(told.readline().strip())


def test_a_folder_goes_with_its_owner(tmp_path: Path) -> None:
    owner = Owner()
    folder = scratch_folder(owner, tmp_path)
    (folder / "package").write_text("x")

    del owner

    assert not folder.exists()
    assert run_folder(tmp_path).exists()
    assert folder.parent == run_folder(tmp_path)


def test_a_process_that_ends_leaves_nothing(tmp_path: Path) -> None:
    process, _ = started(tmp_path)

    assert process.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(
    tmp_path: Path,
) -> None:
    killed, left = started(tmp_path, "wait")
    living, used = started(tmp_path, "wait")
    stranger = tmp_path / "embedl-deploy.run-another_machine-x"
    stranger.mkdir()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.exists()

    own = run_folder(tmp_path)

    assert sorted(tmp_path.iterdir()) == sorted([own, used, stranger])
    assert len(list(used.glob("*/package"))) == 1
    living.kill()
    living.wait()


def test_a_fork_removes_nothing_of_its_parents(tmp_path: Path) -> None:
    owner = Owner()
    folder = scratch_folder(owner, tmp_path)

    child = os.fork()
    if not child:
        del owner
        os._exit(0 if folder.exists() else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert folder.exists()


def test_lies_where_the_system_keeps_temporary_files_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = run_folder()
    first.rmdir()

    assert run_folder() == first
    assert scratch_folder(Owner(), None).parent == first
    assert first.parent == tmp_path
