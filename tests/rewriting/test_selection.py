"""Which rewrites are wanted: by pattern, stage and module."""

import pytest
import torch
from torch import nn

from embedl_deploy.backend import use_backend
from embedl_deploy.explanation import explain
from embedl_deploy.patterns import FuseConvNormActivation, FuseLinearActivation
from embedl_deploy.patterns.quantized import QuantizeLinear
from embedl_deploy.transformation import (
    apply_transformation_plan,
    get_transformation_plan,
    transform,
)

IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(16, 5), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean(-1))


def net() -> nn.Module:
    model = Net()
    model.head[0] = nn.Linear(4, 5)
    return model.eval()


def counts(only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> dict[str, int]:
    return transform(net(), IMAGE, backend="tensorrt", only=only, skip=skip).report.counts()


EVERYTHING = {"fuse-conv-norm-activation": 2, "fuse-linear-activation": 1}
SELECTED: list[tuple[dict[str, tuple[str, ...]], dict[str, int]]] = [
    ({}, EVERYTHING),
    ({"only": ("fuse-conv-norm-activation",)}, {"fuse-conv-norm-activation": 2}),
    ({"only": ("fuse-linear-*",)}, {"fuse-linear-activation": 1}),
    ({"only": ("stem",)}, {"fuse-conv-norm-activation": 1}),
    ({"only": ("body.*", "head")}, {"fuse-conv-norm-activation": 1, "fuse-linear-activation": 1}),
    ({"only": ("conversion",)}, {}),
    ({"skip": ("fusion",)}, {}),
    ({"skip": ("head.0",)}, {"fuse-conv-norm-activation": 2}),
    ({"only": ("fusion",), "skip": ("stem", "fuse-linear-*")}, {"fuse-conv-norm-activation": 1}),
]


@pytest.mark.parametrize(("words", "expected"), SELECTED)
def test_words_select_by_pattern_stage_and_module(
    words: dict[str, tuple[str, ...]], expected: dict[str, int]
) -> None:
    assert counts(**words) == expected


def test_a_smaller_match_takes_the_place_of_one_that_is_left_out() -> None:
    found = counts(skip=("fuse-conv-norm-activation",))

    assert found == {"fuse-conv-norm": 2, "fuse-linear-activation": 1}


def test_the_report_says_which_word_left_a_match_out() -> None:
    report = transform(net(), IMAGE, backend="tensorrt", skip=("stem",)).report

    reasons = [site.reason for site in report.refusals() if site.site == "stem_2"]
    assert "left out by skip='stem'" in reasons


def test_a_selection_is_kept_by_a_plan_that_is_applied_with_checks() -> None:
    plan = get_transformation_plan(net(), IMAGE, backend="tensorrt", only=("head",))

    result = apply_transformation_plan(plan, IMAGE, verify="raise")

    assert result.report.counts() == {"fuse-linear-activation": 1}


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_word_that_means_nothing_is_an_error_with_what_is_known(option: str) -> None:
    with pytest.raises(ValueError, match=r"'stme' means no pattern.*fuse-linear.*stem\.0"):
        counts(**{option: ("stem", "stme")})


def test_one_string_is_no_list_of_words() -> None:
    with pytest.raises(ValueError, match="lists of words, got 'stem'"):
        transform(net(), IMAGE, backend="tensorrt", only="stem")


def test_explain_says_what_would_fire_in_a_stage_that_has_not_run() -> None:
    with use_backend("tensorrt"):
        result = transform(net(), IMAGE)

    quantization = explain(result.model, QuantizeLinear)
    fusion = explain(result.model, FuseConvNormActivation)

    assert [site.pattern for site in quantization.fired] == ["quantize-linear"]
    assert len(fusion.fired) == 2


def test_explain_names_the_word_that_left_a_match_out() -> None:
    result = transform(net(), IMAGE, backend="tensorrt", skip=("head",))

    explanation = explain(result.model, FuseLinearActivation)

    assert explanation.fired == ()
    assert "left out by skip='head'" in str(explanation)
