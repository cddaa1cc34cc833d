from hypothesis import given
from hypothesis import strategies as st

from embedl_deploy.passes.precision_trials import first_passing, thinned


@given(count=st.integers(1, 80), data=st.data())
def test_finds_the_first_that_passes_from_the_start_on(count: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, count - 1))
    border = data.draw(st.integers(0, count))
    asked: list[int] = []

    def passes(position: int) -> bool:
        asked.append(position)
        return position >= border

    found = first_passing(count, start, passes)

    assert found == (max(start, border) if border < count else None)
    assert len(asked) == len(set(asked)) <= 2 * count.bit_length() + 1


@given(data=st.data(), count=st.integers(1, 40))
def test_what_is_found_passes_also_where_passing_is_not_monotonic(
    data: st.DataObject, count: int
) -> None:
    answers = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))

    found = first_passing(count, 0, answers.__getitem__)

    assert not answers[-1] if found is None else answers[found]


def test_thinning_keeps_both_ends_and_the_first_of_each_step() -> None:
    values = [10.0, 9.5, 9.0, 6.0, 5.9, 1.0, 0.0]

    assert thinned(values, 5) == [0, 3, 5, 6]
    assert thinned(values, 1000) == list(range(7))
    assert thinned([1.0, 1.0, 1.0], 5) == [0, 2]
    assert thinned([3.0], 5) == [0]
    assert thinned([], 5) == []
