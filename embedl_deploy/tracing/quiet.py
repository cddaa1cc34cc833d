"""Keeps torch from logging what the tracer turns into an error of its own."""

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
)


@contextmanager
def quiet_torch() -> Generator[None]:
    """Drops what this thread makes torch's tracing loggers say; other threads' records pass."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)


class ModelError(Exception):
    """Carries what a model raised through torch.export, which prints the graph otherwise."""

    def __init__(self, original: Exception) -> None:
        super().__init__(str(original))
        self.original = original

    def __setattr__(self, name: str, value: object) -> None:
        # torch.export prints an exception's partial graph to stderr if it has one.
        if name != "partial_fx_graph":
            super().__setattr__(name, value)
