import time
from collections.abc import Callable

import pytest

from embedl_deploy.lowering.measure import time_interleaved


def sleeping(ms: float, made: list[str], name: str) -> Callable[[], None]:
    def call() -> None:
        made.append(name)
        time.sleep(ms / 1000)

    return call


def test_slow_calls_are_made_less_often_where_time_is_short() -> None:
    made: list[str] = []
    calls = {name: sleeping(20, made, name) for name in ("one", "two")}

    times = time_interleaved(calls, 0.1)

    # Two to warm up, then three rounds of three.
    assert [made.count(name) for name in calls] == [11, 11]
    assert all(taken.median_ms > 19 for taken in times.values())


def test_what_is_hopelessly_slow_is_not_timed_again() -> None:
    made: list[str] = []
    calls = {"slow": sleeping(12, made, "slow"), "fast": sleeping(1, made, "fast")}

    times = time_interleaved(calls, 0.5)

    # Two to warm up and one block, where the other has a block in every round.
    block = made.count("slow") - 2
    assert 3 <= block <= 10
    assert made.count("fast") >= 2 + 3 * block
    assert times["fast"].median_ms < times["slow"].median_ms


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_every_call_is_timed(budget: float) -> None:
    times = time_interleaved({"a": lambda: None, "b": lambda: None}, budget)

    assert list(times) == ["a", "b"]
    assert all(taken.median_ms >= 0 for taken in times.values())
