"""A peer that is measured in a process of its own, in the same rotation as the others."""

import json
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch


class PeerProcess:
    """Starts a module that builds something and then times blocks of calls on demand.

    The module prints one JSON object per line: first what it built (or ``{"error": ...}``), then,
    for each line with a number that it reads, a list with the seconds of that many calls.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments, str(torch.get_num_threads())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.built: dict[str, float | str] = self._read()

    def run_block(self, count: int) -> Sequence[float]:
        """Makes that many calls in the other process and returns the seconds of each."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _read(self):
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        return {"error": f"the process ended with code {self._process.wait()}"}
