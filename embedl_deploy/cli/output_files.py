"""Files that the command line writes: checked before the work, whole or not there after it."""

import json
import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from embedl_deploy.errors import OutputPathError
from embedl_deploy.files import write_aside
from embedl_deploy.tuning.machine import JsonValue


def require_writable(path: Path | None) -> None:
    """Checks, before any long work, that a file can be written at ``path``; None is fine.

    Raises:
        OutputPathError: The folder is missing or cannot be written to, or ``path`` is a folder.
    """
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        raise OutputPathError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise OutputPathError(f"cannot write {path}: it is a folder, name a file in it")
    probe = _aside(path)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OutputPathError(f"cannot write {path}: {_reason(error)}") from error


def make_folder(path: Path) -> None:
    """Makes the folder ``path`` unless it is there.

    Raises:
        OutputPathError: It cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputPathError(f"cannot make the folder {path}: {_reason(error)}") from error


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """Yields a neighbour of ``path`` to write to, and renames it into place at the end.

    If writing fails nothing is left behind and a file that was there before is untouched.

    Raises:
        OutputPathError: The file cannot be written.
    """
    aside = _aside(path)
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        raise OutputPathError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, document: dict[str, JsonValue]) -> None:
    """Writes ``document`` to ``path``, whole or not at all.

    Raises:
        OutputPathError: The file cannot be written.
    """
    content = json.dumps(document, indent=2) + "\n"
    try:
        write_aside(path, content.encode())
    except OSError as error:
        raise OutputPathError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
