import math

import pytest
import torch

from benchmarks.accuracy.digits_nets import NETS
from benchmarks.accuracy.judge import is_significantly_worse, score

REFERENCE = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(200, 10, generator=torch.Generator().manual_seed(1))


def test_noise_is_relative_and_snr_is_its_level() -> None:
    found = score(REFERENCE * 1.1, REFERENCE)

    assert found.noise == pytest.approx(0.1)
    assert found.snr_db == pytest.approx(20.0)
    assert found.top1_agreement == 1.0
    assert found.kl > 0.0


def test_equal_outputs_have_no_noise() -> None:
    found = score(REFERENCE, REFERENCE)

    assert (found.noise, found.kl, found.snr_db) == (0.0, 0.0, math.inf)


def test_only_a_clear_difference_is_significant() -> None:
    small = score(REFERENCE + 0.10 * NOISE, REFERENCE).per_input
    large = score(REFERENCE + 0.12 * NOISE, REFERENCE).per_input
    shuffled = small[torch.randperm(200, generator=torch.Generator().manual_seed(2))]

    assert is_significantly_worse(large, small)
    assert not is_significantly_worse(small, large)
    assert not is_significantly_worse(shuffled, small)


@pytest.mark.parametrize("name", list(NETS))
def test_every_net_gives_ten_scores(name: str) -> None:
    build, _ = NETS[name]

    assert build().eval()(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
