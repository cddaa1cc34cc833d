"""Choosing the target: what it can do, which are installed, which one is active."""

from embedl_deploy.backends.registry import (
    broken_backends,
    discover_backends,
    get_backend,
    reset_backends,
    set_backend,
    use_backend,
)
from embedl_deploy.rewriting.backend import Backend

__all__ = [
    "Backend",
    "broken_backends",
    "discover_backends",
    "get_backend",
    "reset_backends",
    "set_backend",
    "use_backend",
]
