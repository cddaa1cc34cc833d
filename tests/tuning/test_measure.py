import pytest

from embedl_deploy.tuning.measure import (
    measure_in_rotation,
    speedups,
    summarize,
    timed,
    times_slower,
)


def recording_runner(log: list[tuple[str, int]], name: str, seconds: float):
    def run(count: int) -> list[float]:
        log.append((name, count))
        return [seconds] * count

    return run


def test_blocks_rotate_and_reverse_their_order_after_a_warm_up() -> None:
    log: list[tuple[str, int]] = []
    runners = {name: recording_runner(log, name, 0.001) for name in ("a", "b", "c")}

    measure_in_rotation(runners, block=20, min_rounds=3, max_rounds=3)

    warm_up = [("a", 5), ("b", 5), ("c", 5)]
    rounds = [(name, 20) for name in "abcacbcab"]
    assert log == warm_up + rounds


def test_stops_when_the_budget_is_spent_but_not_before_the_least_rounds() -> None:
    log: list[tuple[str, int]] = []

    timings = measure_in_rotation(
        {"a": recording_runner(log, "a", 0.5)}, block=4, min_rounds=2, max_rounds=9, budget_s=0.0
    )

    assert timings["a"].calls == 8


def test_reports_each_round() -> None:
    rounds: list[int] = []

    measure_in_rotation({"a": recording_runner([], "a", 0.5)}, max_rounds=3, on_round=rounds.append)

    assert rounds == [1, 2, 3]


def test_median_and_spread_are_in_milliseconds() -> None:
    timing = summarize(
        [[0.001 * value for value in (5, 1, 2, 3, 4, 11)], [0.006, 0.007, 0.008, 0.009, 0.010]]
    )

    assert (timing.median_ms, timing.p10_ms, timing.p90_ms) == pytest.approx((6.0, 2.0, 10.0))


def test_speedups_are_ratios_of_medians() -> None:
    timings = {"eager": summarize([[0.006]]), "ours": summarize([[0.002]])}

    assert speedups(timings, over="eager") == pytest.approx({"eager": 1.0, "ours": 3.0})


def test_a_slow_phase_of_the_machine_leaves_the_paired_ratio() -> None:
    ours = summarize([[0.002] * 3, [0.020] * 3, [0.002] * 3])
    theirs = summarize([[0.001] * 3, [0.010] * 3, [0.010, 0.001, 0.001]])

    assert times_slower(ours, theirs) == pytest.approx(2.0)
    assert "block_medians_ms" not in ours.as_json()


def test_timed_makes_as_many_calls_as_asked() -> None:
    calls: list[int] = []

    seconds = timed(lambda: calls.append(1))(7)

    assert len(calls) == len(seconds) == 7


@pytest.mark.parametrize(
    "bad", [{"block": 0}, {"min_rounds": 0}, {"min_rounds": 4, "max_rounds": 3}]
)
def test_refuses_senseless_numbers(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need block >= 1"):
        measure_in_rotation({}, **bad)  # pyright: ignore[reportArgumentType]  # the bad numbers are integers


def test_what_runs_before_a_call_is_not_timed() -> None:
    steps: list[str] = []

    seconds = timed(lambda: steps.append("call"), lambda: steps.append("before"))(2)

    assert steps == ["before", "call"] * 2
    assert len(seconds) == 2
