"""Folders for what engines write: they go with their owner, at exit, or after a kill."""

import atexit
import os
import platform
import re
import tempfile
import weakref
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Protocol, cast

_PREFIX = "embedl-deploy.run-"
_UNLOCKED = "embedl-deploy.new-"


def scratch_folder(owner: object, parent: Path | None = None) -> Path:
    """Returns a new folder that is removed when ``owner`` is, or when the process ends.

    Args:
        owner: Who needs it.
        parent: Where it lies; None: where the system keeps temporary files.
    """
    folder = Path(tempfile.mkdtemp(dir=run_folder(parent)))
    remove_with(owner, folder)
    return folder


def remove_with(owner: object, folder: Path) -> None:
    """Lets ``folder`` go when ``owner`` goes."""
    weakref.finalize(owner, _remove, folder, os.getpid())


def run_folder(parent: Path | None = None) -> Path:
    """Returns this process's folder in ``parent``, removed when the process ends.

    A process that is killed leaves its folder. The folder is locked as long as the process lives,
    so that a later one, which makes its own here, sees whose lock is gone and removes it.
    """
    found = _run_folder(Path(tempfile.gettempdir()) if parent is None else parent, os.getpid())
    found.mkdir(exist_ok=True)  # someone may have emptied the parent meanwhile
    return found


@lru_cache
def _run_folder(parent: Path, process: int) -> Path:
    """Makes the folder once; a forked process, which inherits the cache, makes its own."""
    # Locks of another machine on a shared disk may not be seen here: its folders are left alone.
    prefix = f"{_PREFIX}{re.sub(r'[^A-Za-z0-9]', '_', platform.node())}-"
    for left in sorted(parent.glob(f"{prefix}*")):
        _remove_unlocked(left)
    made = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=parent))
    _locked(made)  # the lock lives as long as the process
    # Under its own name only once it is locked: nobody removes it in between.
    folder = made.rename(made.with_name(prefix + made.name.removeprefix(_UNLOCKED)))
    atexit.register(_remove, folder, process)
    return folder


def _remove(folder: Path, process: int) -> None:
    """Removes a folder in the process that made it, never in a fork of it."""
    if os.getpid() == process:
        rmtree(folder, ignore_errors=True)


def _remove_unlocked(folder: Path) -> None:
    if folder.is_symlink() or not _is_own(folder):
        return
    lock = _locked(folder)
    if lock is not None:
        rmtree(folder, ignore_errors=True)
        os.close(lock)


def _is_own(folder: Path) -> bool:
    try:
        return folder.stat().st_uid == os.getuid()
    except OSError:
        return False


def _locked(folder: Path) -> int | None:
    """Returns the descriptor that holds the lock of a folder, None if another process does."""
    if find_spec("fcntl") is None:  # not on Windows: folders of killed processes stay there
        return None
    locks = cast("_Locks", import_module("fcntl"))
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        locks.flock(descriptor, locks.LOCK_EX | locks.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


class _Locks(Protocol):
    LOCK_EX: int
    LOCK_NB: int

    def flock(self, fd: int, operation: int, /) -> None: ...
