import pytest
import torch
from torch import nn

from embedl_deploy.cli.baselines import eager, first_tensor, on_inputs


def test_eager_runs_without_gradients() -> None:
    output = eager(nn.Linear(2, 2))(torch.ones(1, 2))

    assert not torch.as_tensor(output).requires_grad


def test_inputs_are_bound_by_place_and_by_name() -> None:
    def call(x: object, *, y: object = 0) -> tuple[object, object]:
        return x, y

    assert on_inputs(call, (1,), {})() == (1, 0)
    assert on_inputs(call, (1,), {"y": 2})() == (1, 2)


def test_the_first_tensor_of_a_nested_output_is_found() -> None:
    assert torch.equal(first_tensor({"a": [None, torch.ones(2)]}), torch.ones(2))


def test_an_output_without_tensors_is_an_error() -> None:
    with pytest.raises(ValueError, match="returned no tensor"):
        first_tensor({"a": 1})
