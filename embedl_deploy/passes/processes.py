"""Exchange between the processes of one ``torchrun``; alone, a process exchanges with itself."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar, cast

from torch import distributed

from embedl_deploy.errors import CalibrationError

T = TypeVar("T")


def process_count() -> int:
    """Returns how many processes work together; 1 without an initialised process group."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


@contextmanager
def exchanging(make: Callable[[], T]) -> Generator[list[T]]:
    """Yields a list that holds one value of every process, in the order of their ranks, on exit.

    A process whose body raises tells the others, so that none waits for it.

    Args:
        make: Called at the end of the body for this process's value; it must be picklable.

    Raises:
        CalibrationError: Another process failed.
    """
    values: list[T] = []
    if process_count() == 1:
        yield values
        values.append(make())
        return
    outcome: tuple[bool, T | None] = (False, None)
    gathered: list[tuple[bool, T | None] | None] = [None] * process_count()
    try:
        yield values
        outcome = (True, make())
    finally:
        distributed.all_gather_object(gathered, outcome)
    outcomes = [cast("tuple[bool, T]", item) for item in gathered]
    failed = [rank for rank, (is_complete, _) in enumerate(outcomes) if not is_complete]
    if failed:
        raise CalibrationError(
            f"calibration failed in process {', '.join(map(str, failed))} of {len(outcomes)}: no "
            "process may go on without its share of the data, see the error there"
        )
    values += [value for _, value in outcomes]
