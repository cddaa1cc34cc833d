"""Holds predictions against measured sites."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.site_rows import Row, site_in, time_us
from embedl_deploy.quantization.costs import TargetCosts, family_of, predict
from embedl_deploy.quantization.site import Site
from embedl_deploy.tuning.machine import JsonValue

DIFFERENCE = 1.1
"""Sites whose two precisions differ by less than this factor tell nothing."""


@dataclass(frozen=True)
class Judgement:
    """How often the sign of a prediction was right."""

    sites: int
    differing: int
    """By more than 10 %."""

    right: int
    slower: int
    """Of those that differ, measured slower in int8."""

    slower_found: int
    """Of these, predicted so."""

    @property
    def share(self) -> float:
        """Returns the share of the differing sites whose sign was predicted, 0 to 1."""
        return self.right / self.differing if self.differing else 0.0

    def as_json(self) -> dict[str, JsonValue]:
        """Returns the counts and the share."""
        return {
            "sites": self.sites,
            "differ_by_over_10_percent": self.differing,
            "sign_right": self.right,
            "share_right": round(self.share, 3),
            "measured_slower_in_int8": self.slower,
            "of_these_predicted_slower": self.slower_found,
        }


def judged(rows: Sequence[Row], costs: TargetCosts) -> Judgement:
    """Returns how often the sign of the prediction is that of the measurement."""
    telling = [row for row in rows if max(gain_of(row), 1 / gain_of(row)) > DIFFERENCE]
    pairs = [(gain_of(row) < 1, _predicts_slower(row, costs)) for row in telling]
    return Judgement(
        len(rows),
        len(telling),
        sum(measured == predicted for measured, predicted in pairs),
        sum(measured for measured, _ in pairs),
        sum(measured and predicted for measured, predicted in pairs),
    )


def judged_by(
    rows: Sequence[Row], costs: TargetCosts, key: Callable[[Row], str]
) -> dict[str, Judgement]:
    """Returns the judgement of each group of rows, in the order of the first of each."""
    groups = dict.fromkeys(key(row) for row in rows)
    return {name: judged([row for row in rows if key(row) == name], costs) for name in groups}


def family_in(row: Row) -> str:
    """Returns the kind of kernel of a row's site."""
    return family_of(site_in(row))


def gain_of(row: Row) -> float:
    """Returns how many times faster int8 was measured than bfloat16."""
    return time_us(row, "bf16") / time_us(row, "int8")


def wrong_in(rows: Sequence[Row], costs: TargetCosts) -> list[tuple[Site, float, float]]:
    """Returns the sites whose sign was not predicted, with the measured and predicted gain."""
    return [
        (site_in(row), gain_of(row), found.gain)
        for row in rows
        if max(gain_of(row), 1 / gain_of(row)) > DIFFERENCE
        and (found := predict(site_in(row), costs)) is not None
        and (gain_of(row) < 1) != found.is_slower
    ]


def _predicts_slower(row: Row, costs: TargetCosts) -> bool:
    found = predict(site_in(row), costs)
    assert found is not None, f"the table has no costs for {family_in(row)}"
    return found.is_slower
