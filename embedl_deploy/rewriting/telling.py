"""What an error of a pattern's own code tells its author."""

import traceback
from pathlib import Path

import torch

_NOT_THE_AUTHORS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    str(Path(__file__).parent.parent / "graph"),
)


def told(error: Exception) -> str:
    """Returns kind and message of ``error``, and the author's line that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_AUTHORS)]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{where}"
