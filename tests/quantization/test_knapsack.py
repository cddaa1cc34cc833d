import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedl_deploy.quantization.knapsack import frontier

SAVINGS = st.integers(-20, 50).map(float)
ERRORS = st.integers(0, 50).map(float)
ITEMS = st.lists(st.tuples(SAVINGS, ERRORS), max_size=9)


def every_choice(items: list[tuple[float, float]]) -> list[tuple[float, float]]:
    subsets = itertools.product((0, 1), repeat=len(items))
    return [
        (
            sum(taken * saving for taken, (saving, _) in zip(subset, items, strict=True)),
            sum(taken * error for taken, (_, error) in zip(subset, items, strict=True)),
        )
        for subset in subsets
    ]


@given(items=ITEMS, budget=st.integers(0, 200))
def test_least_error_is_that_of_brute_force(
    items: list[tuple[float, float]], budget: float
) -> None:
    feasible = [error for saving, error in every_choice(items) if saving >= budget]

    found = frontier([saving for saving, _ in items], [error for _, error in items])

    at = found.least_error(budget)
    assert (None if at is None else found.errors[at]) == min(feasible, default=None)


@given(items=ITEMS, budget=st.integers(0, 200))
def test_most_saving_is_that_of_brute_force(
    items: list[tuple[float, float]], budget: float
) -> None:
    best = max(saving for saving, error in every_choice(items) if error <= budget)

    found = frontier([saving for saving, _ in items], [error for _, error in items])

    assert found.savings[found.most_saving(budget)] == best
    assert found.exact


@given(items=ITEMS)
def test_choices_add_up_to_what_is_said_of_them_and_none_beats_another(
    items: list[tuple[float, float]],
) -> None:
    found = frontier([saving for saving, _ in items], [error for _, error in items])

    for at in range(len(found)):
        chosen = [items[position] for position in found.choice(at)]
        assert sum(saving for saving, _ in chosen) == found.savings[at]
        assert sum(error for _, error in chosen) == found.errors[at]
    assert list(found.savings) == sorted(set(found.savings), reverse=True)
    assert list(found.errors) == sorted(set(found.errors), reverse=True)


@given(items=st.lists(st.tuples(SAVINGS, ERRORS), min_size=5, max_size=12))
def test_what_is_left_out_for_size_costs_at_most_the_stated_saving(
    items: list[tuple[float, float]],
) -> None:
    savings, errors = [saving for saving, _ in items], [error for _, error in items]
    exact = frontier(savings, errors)
    allowed = len(items) * exact.savings[0] / 6

    thinned = frontier(savings, errors, states=6)

    for error in exact.errors:
        best = exact.savings[exact.most_saving(error)]
        assert thinned.savings[thinned.most_saving(error)] >= best - allowed - 1e-9


def test_hundreds_of_items_stay_within_the_states_and_say_so() -> None:
    savings = [1.0 + (37 * item % 101) / 97 for item in range(300)]
    errors = [0.5 + (53 * item % 89) / 83 for item in range(300)]

    found = frontier(savings, errors, states=500)

    assert not found.exact
    assert len(found) <= 501
    assert found.savings[0] == pytest.approx(sum(savings))
    assert found.errors[-1] == 0.0


def test_items_that_save_nothing_are_never_chosen() -> None:
    found = frontier([3.0, -1.0, 0.0], [1.0, 0.0, 0.0])

    assert {item for at in range(len(found)) for item in found.choice(at)} == {0}


@pytest.mark.parametrize(
    ("savings", "errors", "message"),
    [
        ([1.0], [1.0, 2.0], "one saving and one error per item"),
        ([float("nan")], [1.0], "must be finite"),
        ([1.0], [-1.0], "errors must be at least 0"),
    ],
)
def test_refuses_what_cannot_be_added_up(
    savings: list[float], errors: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        frontier(savings, errors)
