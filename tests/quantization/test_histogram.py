import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedl_deploy.quantization.histogram import BINS, Histogram


def filled(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch, float(batch.min()), float(batch.max()))
    return histogram


def batches_of_growing_range(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(257, generator=generator) * 10.0**power for power in (-3, -1, 0, 2)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_the_order_of_batches_does_not_matter(seed: int, order: list[int]) -> None:
    batches = batches_of_growing_range(seed)

    forward = filled(*batches)
    shuffled = filled(*(batches[index] for index in order))

    assert torch.equal(forward.counts, shuffled.counts)
    assert (forward.exponent, forward.low, forward.high) == (
        shuffled.exponent,
        shuffled.low,
        shuffled.high,
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_merging_two_halves_equals_counting_all(seed: int) -> None:
    batches = batches_of_growing_range(seed)
    merged = filled(*batches[2:])

    merged.merge(filled(*batches[:2]))

    assert torch.equal(merged.counts, filled(*batches).counts)


def test_every_value_falls_in_its_own_bin() -> None:
    values = torch.tensor([-3.0, -0.001, 0.0, 0.5, 2.999])

    histogram = filled(values)

    for value in values.double():
        index = int(histogram.bin_of(value))
        assert histogram.counts[index] > 0
        assert histogram.edge(index) <= value < histogram.edge(index + 1)
    assert int(histogram.counts.sum()) == 5


def test_the_peak_lies_in_the_upper_half_of_its_side() -> None:
    for peak in (1e-6, 0.7, 1.0, 3.3e4):
        histogram = filled(torch.tensor([peak]))

        assert BINS * 3 // 4 <= int(histogram.bin_of(torch.tensor(peak).double())) < BINS


def test_zeros_before_any_value_are_not_lost() -> None:
    histogram = filled(torch.zeros(7), torch.tensor([1.0]))

    assert int(histogram.counts[BINS // 2]) == 7
    assert int(histogram.counts.sum()) == 8


def test_moments_are_running_sums() -> None:
    values = torch.tensor([-2.0, 1.0, 1.0, 3.0])

    count, total, squares = filled(values).moments()[:, -1]

    assert float(count) == 4
    assert abs(float(total) - 3.0) < 4 * filled(values).width
    assert abs(float(squares) - 15.0) < 20 * filled(values).width


def test_state_goes_to_another_histogram() -> None:
    first, second = filled(torch.randn(100)), Histogram()

    second.load_state(first.state())
    second.add(torch.tensor([50.0]), 50.0, 50.0)

    assert int(second.counts.sum()) == 101
    assert int(first.counts.sum()) == 100
