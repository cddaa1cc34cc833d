"""What the wrapper of a tuned module adds to a call."""

import pytest
import torch
from torch import nn

from benchmarks.overhead import CASES, Case, contenders, measured, tuned


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


def test_a_wrapper_that_falls_back_to_eager_is_not_measured() -> None:
    class Changes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1)

    with pytest.raises((RuntimeError, ValueError)):
        measured(Case("changes its input", Changes(), (torch.ones(4),), 1.0), 0.1)
