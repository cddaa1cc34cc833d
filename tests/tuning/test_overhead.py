"""What the wrapper of a tuned module adds to a call."""

from dataclasses import replace

import pytest
import torch

from benchmarks import overhead
from benchmarks.overhead import CASES, Case, contenders, measured, tuned
from embedl_deploy.tuning import Module


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_call_takes_little_more_than_eager(case: Case) -> None:
    found = measured(case, 3.0)

    assert isinstance(found["bars"], dict)
    assert all(found["bars"].values()), found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_that_is_timed_computes_the_same(case: Case) -> None:
    wrapped = tuned(case)

    outputs = [call() for call in contenders(case, wrapped).values()]

    assert wrapped.eager_calls == 0
    for output in outputs:
        torch.testing.assert_close(output[0] if isinstance(output, tuple) else output, outputs[0])


def test_a_wrapper_that_falls_back_to_eager_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrapped, case = tuned(CASES[0]), replace(CASES[0], args=(torch.ones(5),))

    def tuned_for_others(case: Case) -> Module:
        del case
        return wrapped

    monkeypatch.setattr(overhead, "tuned", tuned_for_others)

    with pytest.raises(RuntimeError, match="calls ran eager: the wrapper took none of them"):
        measured(case, 0.0)
