import math

import pytest
import torch
from torch import Tensor

from embedl_deploy.quantization import QuantGrid
from embedl_deploy.quantization.config import TensorQuantConfig
from embedl_deploy.quantization.fake_quantize import fake_quantize, fake_quantize_per_channel
from embedl_deploy.quantization.learned_step import LearnedStep
from embedl_deploy.quantization.precision import Precision

ROWS = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


def grid(precision: Precision, *, symmetric: bool = True) -> QuantGrid:
    return QuantGrid.of(TensorQuantConfig(precision, symmetric=symmetric))


@pytest.mark.parametrize("precision", list(Precision))
def test_rounds_as_the_quantizer_that_it_replaces(precision: Precision) -> None:
    codes = grid(precision)
    scale, zero = torch.tensor(1.7 / codes.positive_codes), torch.tensor(0, dtype=torch.int32)

    found = LearnedStep(scale, None, codes)(ROWS, scale, zero)

    assert torch.equal(found, fake_quantize(ROWS, scale, zero, codes))


def test_rounds_per_channel_and_around_a_zero_point() -> None:
    codes = grid(Precision.INT8, symmetric=False)
    scale, zero = torch.linspace(0.01, 0.03, 40), torch.arange(-20, 20, dtype=torch.int32)

    found = LearnedStep(scale, 1, codes)(ROWS, scale, zero)

    assert torch.equal(found, fake_quantize_per_channel(ROWS, scale, zero, 1, codes))


def gradients(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    step = LearnedStep(scale, None, grid(Precision.INT4))
    values = values.clone().requires_grad_()
    step(values, scale, torch.tensor(0, dtype=torch.int32)).sum().backward()
    assert values.grad is not None
    assert step.log_growth.grad is not None
    return values.grad, step.log_growth.grad


def test_gradients_are_those_of_the_paper() -> None:
    # Codes -8 (clipped), 1, 3, 7 (clipped) at a step of 0.5.
    values = torch.tensor([-6.0, 0.4, 1.6, 5.0])

    by_value, by_growth = gradients(values, torch.tensor(0.5))

    assert by_value.tolist() == [0.0, 1.0, 1.0, 0.0]
    by_step = -8 + (1 - 0.8) + (3 - 3.2) + 7
    assert float(by_growth) == pytest.approx(by_step * 0.5 / math.sqrt(4 * 7), rel=1e-5)


def test_what_was_learned_moves_into_the_scale() -> None:
    scale = torch.tensor([0.5, 0.25])
    step = LearnedStep(scale, 0, grid(Precision.INT4))
    with torch.no_grad():
        step.log_growth.copy_(torch.tensor([math.log(2.0), math.log(3.0)]))
    before = step(ROWS[:2], scale, torch.zeros(2, dtype=torch.int32))

    step.grow(scale)

    torch.testing.assert_close(scale, torch.tensor([1.0, 0.75]))
    assert step.log_growth.tolist() == [0.0, 0.0]
    torch.testing.assert_close(step(ROWS[:2], scale, torch.zeros(2, dtype=torch.int32)), before)
