"""Drops what one thread says; what other threads say meanwhile comes through."""

import logging
import threading
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import cast


@contextmanager
def without_records(loggers: Sequence[logging.Logger]) -> Generator[None]:
    """Drops what this thread makes the loggers say."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for logger in loggers:
        logger.addFilter(passes)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(passes)


def loggers_below(*names: str) -> list[logging.Logger]:
    """Returns the loggers of these names and those that exist below them."""
    below = tuple(f"{name}." for name in names)
    known = list(logging.Logger.manager.loggerDict.values())
    found = [one for one in known if isinstance(one, logging.Logger)]
    named = [logging.getLogger(name) for name in names]
    return list(dict.fromkeys([*named, *(one for one in found if one.name.startswith(below))]))


@contextmanager
def without_warnings() -> Generator[None]:
    """Drops what this thread warns.

    ``warnings.catch_warnings`` puts the list of filters back that it met: where two threads
    overlap, the list of the other one, for good. This adds one entry, and takes that entry out.
    """
    own = _OwnThread()
    entry = ("ignore", own, Warning, None, 0)
    met = _filters()
    met.insert(0, entry)
    try:
        yield
    finally:
        own.thread = None  # wherever the entry was copied to
        for filters in (met, _filters()):
            if entry in filters:
                filters.remove(entry)


class _OwnThread:
    """Stands in a filter of warnings for the pattern of a message, and admits those of a thread."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def match(self, text: str) -> bool:
        del text
        return self.thread == threading.get_ident()


def _filters() -> list[object]:
    return cast("list[object]", warnings.filters)
