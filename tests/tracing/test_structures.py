from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from embedl_deploy.tracing import trace
from embedl_deploy.tracing.structures import named_leaves


class Pair(NamedTuple):
    left: object
    right: object


class Output:
    """A class that pytree knows without names of its keys, as those of transformers are."""

    def __init__(self, *values: object) -> None:
        self.values = list(values)


class ReturnsOutput(nn.Module):
    def forward(self, x: Tensor) -> Output:
        return Output(x + 1, x * 2)


@pytest.fixture
def _registered() -> Iterator[None]:
    pytree.register_pytree_node(
        Output, lambda it: (it.values, None), lambda values, _: Output(*values)
    )
    yield
    del pytree.SUPPORTED_NODES[Output]


@pytest.mark.usefixtures("_registered")
def test_leaves_have_the_names_by_which_code_reaches_them() -> None:
    value = ({"a": [1, None]}, Pair(2, Output(3, (4,))))

    assert list(named_leaves(value, "x")) == [
        ("x[0]['a'][0]", 1),
        ("x[0]['a'][1]", None),
        ("x[1].left", 2),
        ("x[1].right[0]", 3),
        ("x[1].right[1][0]", 4),
    ]


@pytest.mark.usefixtures("_registered")
def test_a_model_that_returns_such_a_class_is_traced() -> None:
    traced = trace(ReturnsOutput().eval(), (torch.ones(2),))

    result = traced(torch.ones(2))

    assert isinstance(result, Output)
    assert [value.tolist() for value in result.values if isinstance(value, Tensor)] == [
        [2.0, 2.0],
        [2.0, 2.0],
    ]
