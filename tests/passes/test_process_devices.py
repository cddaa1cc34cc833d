"""What processes exchange, each with a GPU of its own; tensors without data stand for theirs."""

from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node

from embedl_deploy.passes.bias_correction import InputMean
from embedl_deploy.passes.layer_inputs import InputMoments
from embedl_deploy.passes.smoothing_site import SmoothingSite
from embedl_deploy.rewriting import PatternMatch

CPU = torch.device("cpu")
DEVICES = (torch.device("cuda:0"), torch.device("cuda:1"))


@pytest.fixture(autouse=True)
def tensors_without_data() -> Iterator[None]:
    with FakeTensorMode():
        yield


def mean_on(device: torch.device) -> InputMean:
    mean = InputMean()
    mean.add(torch.randn(4, 3, device=device), -1)
    return mean


def device_of(mean: InputMean) -> torch.device:
    assert mean.total is not None
    return mean.total.device


def test_means_of_inputs_are_exchanged_on_the_cpu() -> None:
    states = [mean_on(device).state() for device in DEVICES]

    for device, own in zip(DEVICES, map(mean_on, DEVICES), strict=True):
        own.load_merged(states)

        assert {tensor.device for state in states for tensor in state.values()} == {CPU}
        assert own.count == 8
        assert own.as_input(torch.empty(5, 3, device=device)).device == device
        assert device_of(own.divided_by(torch.ones(3, device=device))) == device


@pytest.mark.parametrize("saved_on", [CPU, DEVICES[1]])
def test_a_mean_goes_on_from_a_state_that_was_loaded_elsewhere(saved_on: torch.device) -> None:
    state = mean_on(DEVICES[1]).state()
    state["total"] = state["total"].to(saved_on)
    resumed = InputMean()

    resumed.load_state(state)
    resumed.add(torch.randn(4, 3, device=DEVICES[0]), -1)

    assert device_of(resumed) == DEVICES[0]


def test_moments_of_inputs_are_exchanged_on_the_cpu() -> None:
    every = [InputMoments() for _ in DEVICES]
    for moments, device in zip(every, DEVICES, strict=True):
        moments.add(torch.randn(1, 3, 5, device=device))

    merged = InputMoments().on_cpu()
    for moments in every:
        merged.merge(moments.on_cpu())

    gram = merged.gram(centred=True)
    assert gram is not None
    assert (gram.device, gram.shape, merged.count) == (CPU, (1, 3, 3), 10)


def site_on(device: torch.device, *, saw_data: bool) -> SmoothingSite:
    linear = nn.Linear(3, 5)
    linear.weight = nn.Parameter(torch.empty(5, 3, device=device))
    nowhere = cast("PatternMatch", None), cast("Node", None)  # neither is read
    site = SmoothingSite(*nowhere, nn.Identity(), (linear,))
    if saw_data:
        site.lows, site.highs = torch.empty(2, 3, device=device)
        site.rows = torch.empty(4, 3, device=device)
    return site


@pytest.mark.parametrize("last_saw_data", [True, False])
def test_smoothing_takes_over_what_others_saw_on_its_own_device(last_saw_data: bool) -> None:
    sites = [site_on(DEVICES[0], saw_data=True), site_on(DEVICES[1], saw_data=last_saw_data)]
    seen = [site.seen() for site in sites]

    for site, device in zip(sites, DEVICES, strict=True):
        site.take(seen)

        assert {part.device for one in seen for part in one if part is not None} == {CPU}
        found = (*site.extremes(), site.rows)
        assert [part.device for part in found if part is not None] == [device] * 3
