import time
from collections.abc import Callable

import pytest
import torch

from embedl_deploy.lowering.measure import fidelity_of, time_interleaved


def sleeping(ms: float, made: list[str], name: str) -> Callable[[], None]:
    def call() -> None:
        made.append(name)
        time.sleep(ms / 1000)

    return call


def test_slow_calls_are_made_less_often_where_time_is_short() -> None:
    made: list[str] = []
    calls = {name: sleeping(20, made, name) for name in ("one", "two")}

    times = time_interleaved(calls, 0.1)

    # Two to warm up, then three rounds of one to warm up and three that count.
    assert [made.count(name) for name in calls] == [14, 14]
    assert all(taken.median_ms > 19 for taken in times.values())


def test_what_is_hopelessly_slow_is_not_timed_again() -> None:
    made: list[str] = []
    calls = {"slow": sleeping(12, made, "slow"), "fast": sleeping(1, made, "fast")}

    times = time_interleaved(calls, 0.5)

    # Two to warm up and one block, where the other has a block in every round.
    block = made.count("slow") - 2
    assert 4 <= block <= 11
    assert made.count("fast") >= 2 + 3 * block
    assert times["fast"].median_ms < times["slow"].median_ms


@pytest.mark.parametrize(("other", "rounds"), [(1.2, 3), (1.01, 30)])
def test_time_goes_to_calls_that_are_close(
    other: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, made = 0.0, 0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def first() -> None:
        nonlocal now, made
        now, made = now + 1.0, made + 1

    def second() -> None:
        nonlocal now
        now += other

    times = time_interleaved({"first": first, "second": second}, 1e6)

    assert made == 2 + 11 * rounds
    assert times["second"].median_ms == pytest.approx(1e3 * other)


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_every_call_is_timed(budget: float) -> None:
    times = time_interleaved({"a": lambda: None, "b": lambda: None}, budget)

    assert list(times) == ["a", "b"]
    assert all(taken.median_ms >= 0 for taken in times.values())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_are_off_by_what_they_are_off_by(dtype: torch.dtype) -> None:
    reference = torch.complex(torch.linspace(-1, 1, 8), torch.linspace(2, 3, 8)).to(dtype)
    # A lazy conjugate of the conjugate, so that both ways of storing the same are compared.
    same = torch.complex(reference.real.float(), -reference.imag.float()).to(dtype).conj()

    rounded = fidelity_of([reference * 1.25], [reference])
    turned = fidelity_of([reference * -1], [reference])

    assert same.is_conj()
    assert fidelity_of([same], [reference]).relative_error == 0.0
    assert rounded.relative_error == pytest.approx(0.25, rel=1e-2)
    assert rounded.cosine == pytest.approx(1.0, rel=1e-3)
    assert (turned.relative_error, turned.cosine) == pytest.approx((2.0, -1.0), rel=1e-3)
