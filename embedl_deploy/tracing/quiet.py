"""Keeps torch from logging what the tracer turns into an error of its own."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

from embedl_deploy.tracing.quiet_thread import without_records

_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
)


@contextmanager
def quiet_torch() -> Generator[None]:
    """Drops what this thread makes torch's tracing loggers say; other threads' records pass."""
    with without_records([logging.getLogger(name) for name in _LOGGERS]):
        yield


class ModelError(Exception):
    """Carries what a model raised through torch.export, which prints the graph otherwise."""

    def __init__(self, original: Exception) -> None:
        super().__init__(str(original))
        self.original = original

    def __setattr__(self, name: str, value: object) -> None:
        # torch.export prints an exception's partial graph to stderr if it has one.
        if name != "partial_fx_graph":
            super().__setattr__(name, value)
