"""Runs a function on many models of the zoo, in this process or in several."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from multiprocessing import get_context
from typing import TypeVar

import torch

from benchmarks.zoo.cases import Case, zoo

Row = TypeVar("Row")


def on_each(
    run: Callable[[Case], Row], names: Sequence[str], workers: int = 1, *, in_order: bool = True
) -> Iterator[Row]:
    """Yields what ``run`` returns for each case.

    Args:
        run: A function that another process can import, or a ``functools.partial`` of one.
        names: Names of cases.
        workers: How many processes share the work; with 1 it is done in this one.
        in_order: Whether rows come in the order of ``names``; otherwise each as it is done.
    """
    if workers == 1:
        yield from (_run_named(run, name) for name in names)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        if in_order:
            yield from pool.map(partial(_run_named, run), names)
            return
        waiting = [pool.submit(_run_named, run, name) for name in names]
        yield from (done.result() for done in as_completed(waiting))


def _run_named(run: Callable[[Case], Row], name: str) -> Row:
    return run(_cases()[name])


@cache
def _cases() -> dict[str, Case]:
    return {case.name: case for case in zoo()}
