"""What a build may raise, and how reports word it."""

import subprocess

from embedl_deploy.errors import EmbedlDeployError

BUILD_ERRORS = (
    EmbedlDeployError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, ImportError, OSError, MemoryError,
    subprocess.SubprocessError,
)  # fmt: skip
"""What a build may raise: a compiler fails in many ways, and the next engine gets its turn."""

PASSING_ERRORS = (OSError, ImportError, MemoryError, subprocess.SubprocessError)
"""Failures that say more of the moment than of the graph: they are tried again next time."""


def error_text(error: BaseException) -> str:
    """Returns the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
