from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedl_deploy.passes.weight_rounding import Choice
from embedl_deploy.quantization import Precision, QuantGrid, TensorQuantConfig
from embedl_deploy.quantization.adaptive_rounding import adaptive_codes
from embedl_deploy.quantization.fake_quantize import quantize_codes
from embedl_deploy.quantization.rounded_weight import RoundedWeight
from embedl_deploy.quantization.weight_rounding import compensated_codes, output_error
from embedl_deploy.quantization.weights import WeightFakeQuantize

INT4 = TensorQuantConfig(Precision.INT4, per_channel=True)
GRID = QuantGrid.of(INT4)


def problem(seed: int, groups: int, out: int, size: int, samples: int) -> tuple[Tensor, ...]:
    """Returns weights, scales and inputs whose channels go together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, out, size, generator=generator)
    inputs = torch.randn(groups, size, samples, generator=generator)
    mixed = torch.randn(groups, size, size, generator=generator) @ inputs + 0.3
    return weight, weight.abs().amax(2, keepdim=True) / 7, mixed


def nearest(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.round(weight / scale).clamp(-8, 7)


CHOICES = [compensated_codes, partial(adaptive_codes, steps=20)]
EITHER = pytest.mark.parametrize("choose", CHOICES, ids=["gptq", "adaround"])


@EITHER
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    groups=st.integers(1, 3),
    out=st.integers(1, 5),
    size=st.integers(1, 20),
    samples=st.integers(1, 60),
)
def test_no_output_gets_worse_than_with_the_nearest_codes(
    choose: Choice, seed: int, groups: int, out: int, size: int, samples: int
) -> None:
    weight, scale, inputs = problem(seed, groups, out, size, samples)

    codes = choose(weight, scale, GRID, inputs @ inputs.transpose(1, 2))

    errors = [
        ((weight - some * scale) @ inputs).double().square().sum(2)
        for some in (codes, nearest(weight, scale))
    ]
    assert bool((errors[0] <= errors[1] * (1 + 1e-4) + 1e-9).all())
    assert torch.equal(codes, codes.round())
    assert float(codes.min()) >= -8
    assert float(codes.max()) <= 7


@pytest.mark.parametrize("choose", [compensated_codes, adaptive_codes], ids=["gptq", "adaround"])
def test_most_of_the_output_error_goes_where_inputs_go_together(choose: Choice) -> None:
    weight, scale, inputs = problem(0, 2, 32, 200, 1000)
    gram = inputs @ inputs.transpose(1, 2)

    codes = choose(weight, scale, GRID, gram)

    before = output_error(weight, scale, nearest(weight, scale), gram).sum()
    after = output_error(weight, scale, codes, gram).sum()
    assert float(after) < 0.5 * float(before)


def test_each_weight_is_rounded_up_or_down_and_no_further() -> None:
    weight, scale, inputs = problem(1, 2, 16, 40, 200)
    clipped = 0.7 * scale  # codes beyond the ends of the grid
    gram = inputs @ inputs.transpose(1, 2)
    for steps in (scale, clipped, scale * torch.linspace(0.9, 1.1, 40)):
        codes = adaptive_codes(weight, steps, GRID, gram, steps=100)

        below = torch.floor(weight / steps)
        is_either = (codes == below.clamp(-8, 7)) | (codes == (below + 1).clamp(-8, 7))
        assert bool(is_either.all())
        assert 0.02 < float((codes != nearest(weight, steps)).float().mean()) < 0.5
    again = adaptive_codes(weight, scale, GRID, gram, steps=100)
    assert torch.equal(again, adaptive_codes(weight, scale, GRID, gram, steps=100))


@EITHER
def test_independent_inputs_have_nothing_to_make_up_for(choose: Choice) -> None:
    weight, scale, _ = problem(0, 1, 8, 16, 1)

    codes = choose(weight, scale, GRID, torch.eye(16)[None])

    assert torch.equal(codes, nearest(weight, scale))


def test_an_input_that_is_always_zero_keeps_its_nearest_codes() -> None:
    weight, scale, inputs = problem(3, 1, 8, 16, 100)
    inputs[:, [0, 5]] = 0.0

    codes = compensated_codes(weight, scale, GRID, inputs @ inputs.transpose(1, 2))
    all_zero = compensated_codes(weight, scale, GRID, torch.zeros(1, 16, 16))

    assert torch.equal(codes[:, :, [0, 5]], nearest(weight, scale)[:, :, [0, 5]])
    assert not torch.equal(codes, nearest(weight, scale))
    assert torch.equal(all_zero, nearest(weight, scale))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_quantizer_gives_the_codes_that_it_was_told(axis: int) -> None:
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    plain = WeightFakeQuantize(INT4, weight.shape, axis)
    plain.freeze(weight)
    plain.scale.mul_(0.6)  # some values are clipped
    codes = torch.randint(-8, 8, (6, 6), generator=torch.Generator().manual_seed(1))

    rounded = RoundedWeight(plain, weight, codes.float())

    found, scale = rounded.codes_of(weight)
    assert torch.equal(found.long(), codes)
    shape = (-1, 1) if axis == 0 else (1, -1)
    torch.testing.assert_close(rounded(weight), codes * scale.reshape(shape))
    again, _ = rounded.plain().codes_of(weight)
    fresh = WeightFakeQuantize(INT4, weight.shape, axis)
    assert torch.equal(again, fresh.codes_of(weight)[0])
    assert not torch.equal(found, quantize_codes(weight, scale, plain.zero_point, axis, GRID))
