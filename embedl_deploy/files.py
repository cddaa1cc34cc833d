"""Files that are either whole or not there."""

import os
import uuid
from pathlib import Path


def write_aside(path: Path, content: bytes) -> None:
    """Writes ``content`` to a temporary neighbour of ``path`` and renames it into place.

    A reader, a crash or a full disk never sees half a file: the old one stays until the new one
    is complete.

    Raises:
        OSError: The folder does not exist, is not writable, or is full.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
