"""What the command line prints: results on standard output, everything else on the other."""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embedl_deploy.tuning.machine import JsonValue

_WIDTH_OF_A_FILE = 140
"""Columns of what is printed into a file or a pipe."""


class Screen:
    """Shows steps while they run, and results either as tables or as one JSON document."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._messages = Console(stderr=True, highlight=False)
        width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
        self._results = Console(highlight=False, width=width)

    def show(self, *parts: RenderableType) -> None:
        """Prints results for a person; nothing with ``--json``."""
        if not self.as_json:
            self._results.print(*parts)

    def emit(self, document: dict[str, JsonValue]) -> None:
        """Prints the result for a machine; nothing without ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2) + "\n")

    def note(self, message: str) -> None:
        """Prints a sentence beside the results."""
        self._messages.print(message, style="dim")

    def error(self, message: str) -> None:
        """Prints what went wrong, in the author's words: markup in it is left alone."""
        self._messages.print("[bold red]error:[/] ", end="")
        self._messages.print(message, markup=False)

    @contextmanager
    def step(self, title: str) -> Generator[None]:
        """Shows that something of unknown length runs, and then how long it took."""
        start = time.perf_counter()
        with self._messages.status(title):
            yield
        self._done(title, start)

    @contextmanager
    def counted_step(self, title: str, total: int) -> Generator[Callable[[int], None]]:
        """Shows a bar; yields what must be called with the number of items done."""
        start = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns, TimeElapsedColumn(), console=self._messages, transient=True
        ) as progress:
            task = progress.add_task(title, total=total)
            yield lambda done: progress.update(task, completed=done)
        self._done(title, start)

    def _done(self, title: str, start: float) -> None:
        seconds = time.perf_counter() - start
        self._messages.print(f"[green]✓[/] {title} [dim]{seconds:.1f} s[/]")


def quiet_libraries() -> None:
    """Keeps other libraries' chatter off the terminal, in this process and its children.

    For the command line alone: a library never sets up logging for its users.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torchao").setLevel(logging.ERROR)
    for name in ("torch.utils._pytree", "torch.export", "torch._inductor"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
