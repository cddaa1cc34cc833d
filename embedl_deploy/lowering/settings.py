"""How subgraphs are built and judged."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

from embedl_deploy.lowering.signature import SymbolRange

Choose = Literal["first", "measure"]

Progress = Callable[[str], None]
"""Called with one line at the start of each long step."""


@dataclass(frozen=True)
class Terms:
    """What a lowered model keeps to: saved with it, and kept where it is built anew."""

    fallback: bool = True
    """Whether a subgraph runs eager where its engine fails."""

    tolerance: float | None = None
    """As in ``BuildSettings``."""

    allow_simulated: bool = False
    """Whether quantize and dequantize may run as float arithmetic."""


@dataclass(frozen=True)
class BuildSettings:
    """How subgraphs are built and judged."""

    choose: Choose = "first"
    tolerance: float | None = None
    """Largest relative error against the graph on the example inputs; None: 0.1, and 0.25 where
    the graph is quantized, since rounding to the next step may go either way."""

    cache_dir: Path | None = None
    """Where built engines and choices are kept by content; None: nowhere."""

    time_budget_s: float | None = None
    """With ``choose="measure"``: seconds after which no further candidate is built."""

    builds: int | Executor = 1
    """How many engines are built at once, in processes of their own, or what runs the builds."""

    progress: Progress | None = None
    symbols: Mapping[str, SymbolRange] = field(default_factory=dict[str, SymbolRange])
    """The declared ranges of the sizes that vary."""

    allow_simulated: bool = False
    """Whether quantize and dequantize may run as float arithmetic."""

    deadline: float | None = None
    """When the time budget is spent, by ``time.perf_counter``."""

    def __post_init__(self) -> None:
        builds = cast("object", self.builds)
        if not isinstance(builds, Executor) and not (isinstance(builds, int) and builds >= 1):
            raise ValueError(f"builds must be 1 or more, or an executor, got {builds!r}")
        if self.choose not in get_args(Choose):
            raise ValueError(f"choose must be 'first' or 'measure', got {self.choose!r}")
        for name in ("tolerance", "time_budget_s"):
            value: float | None = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more, or None, got {value}")

    def started(self) -> "BuildSettings":
        """Returns these settings with the clock of the time budget running."""
        if self.time_budget_s is None:
            return self
        return replace(self, deadline=time.perf_counter() + self.time_budget_s)

    @property
    def is_spent(self) -> bool:
        """Whether the time budget is spent."""
        return self.deadline is not None and time.perf_counter() >= self.deadline

    def say(self, line: str) -> None:
        if self.progress is not None:
            self.progress(line)
