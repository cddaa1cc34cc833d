import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.modules import QuickGELU
from embedl_deploy.patterns import RecomposeGelu, RecomposeQuickGelu, RecomposeSilu
from embedl_deploy.rewriting import apply_patterns
from embedl_deploy.testing import check_rewrite
from embedl_deploy.tracing import trace

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
SLOPE = math.sqrt(2 / math.pi)
Spelling = Callable[[Tensor], Tensor]

TANH: list[Spelling] = [
    lambda x: 0.5 * x * (1 + torch.tanh(SLOPE * (x + 0.044715 * torch.pow(x, 3.0)))),
    lambda x: x * 0.5 * (torch.tanh((x + 0.044715 * x * x * x) * SLOPE) + 1),
    lambda x: 0.5 * (x * (1 + torch.tanh(SLOPE * (0.044715 * x**3 + x)))),
    lambda x: x * 0.5 * (1.0 + torch.tanh(SLOPE * x * (1 + 0.044715 * x * x))),
]
EXACT: list[Spelling] = [
    lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    lambda x: x / 2 * (1.0 + torch.erf(x * math.sqrt(0.5))),
    lambda x: x * ((torch.erf(x / math.sqrt(2.0)) + 1) * 0.5),
]
OTHER: list[Spelling] = [
    lambda x: x * 0.5 * (1.0 + torch.erf(x / 1.5)),
    lambda x: x * 0.25 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    lambda x: (x + 1) * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
]
SILU: list[Spelling] = [lambda x: x * x.sigmoid(), lambda x: torch.sigmoid(x) * x]
QUICK: list[Spelling] = [
    lambda x: x * torch.sigmoid(1.702 * x),
    lambda x: (x * 1.702).sigmoid() * x,
]


class Spelled(nn.Module):
    """An activation as a function spells it."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(x)


@pytest.mark.parametrize("spelling", TANH)
def test_recomposes_the_tanh_approximation(spelling: Spelling) -> None:
    check_rewrite(RecomposeGelu(), Spelled(spelling), nn.Sequential(nn.GELU("tanh")), X)


@pytest.mark.parametrize("spelling", EXACT)
def test_recomposes_the_exact_formula(spelling: Spelling) -> None:
    check_rewrite(RecomposeGelu(), Spelled(spelling), nn.Sequential(nn.GELU()), X)


@pytest.mark.parametrize("spelling", OTHER)
def test_leaves_a_formula_with_another_number_or_input(spelling: Spelling) -> None:
    graph = trace(Spelled(spelling), (X,))

    assert not apply_patterns(graph, [RecomposeGelu]).applied


@pytest.mark.parametrize("spelling", SILU)
def test_recomposes_silu_in_either_order(spelling: Spelling) -> None:
    check_rewrite(RecomposeSilu(), Spelled(spelling), nn.Sequential(nn.SiLU()), X)


@pytest.mark.parametrize("spelling", QUICK)
def test_recomposes_the_sigmoid_approximation(spelling: Spelling) -> None:
    check_rewrite(RecomposeQuickGelu(), Spelled(spelling), nn.Sequential(QuickGELU()), X)


def test_leaves_the_gate_of_another_tensor() -> None:
    graph = trace(Spelled(lambda x: x * (x * 1.7).sigmoid()), (X,))

    assert not apply_patterns(graph, [RecomposeSilu]).applied
