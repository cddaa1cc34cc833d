import json

import torch

from embedl_deploy.report.json_form import json_value, refusal_groups, stage_json
from embedl_deploy.rewriting import PassRecord, SiteRecord


def site(name: str, reason: str | None = None, pattern: str = "fold-norm") -> SiteRecord:
    return SiteRecord("fusion", pattern, name, (name,), "layer", "net.py:7", reason)


def test_refusals_that_differ_only_in_nodes_are_one_group() -> None:
    refused = [
        site("norm", "%conv is also used by %add"),
        site("norm_1", "%conv_1 is also used by %add_1"),
        site("norm_2", "the norm is in training mode"),
    ]

    first, second = refusal_groups(refused)

    assert (first.reason, first.sites) == ("%… is also used by %…", ("norm", "norm_1"))
    assert first.first == "%conv is also used by %add"
    assert second.sites == ("norm_2",)


def test_refusals_of_two_patterns_stay_apart() -> None:
    refused = [site("a", "busy"), site("b", "busy", pattern="other")]

    assert [group.pattern for group in refusal_groups(refused)] == ["fold-norm", "other"]


def test_a_stage_counts_what_was_applied_and_keeps_its_notes() -> None:
    record = PassRecord("fusion", (site("a"), site("b")), (site("c", "busy"),), 0.5, ("quick",))

    document = json.loads(json.dumps(stage_json(record)))

    assert document["applied"] == {"fold-norm": 2}
    assert document["refused"][0]["sites"] == ["c"]
    assert document["notes"] == ["quick"]


def test_values_that_json_lacks_become_text() -> None:
    assert json_value({"a": (1, None, torch.float32), 2: [True]}) == {
        "a": [1, None, "torch.float32"],
        "2": [True],
    }
