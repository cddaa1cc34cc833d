import re

import pytest
import torch

from benchmarks.partition_picture import IMAGE, StemAndHead, shared
from embedl_deploy.deployment import lower, plan_lowering
from embedl_deploy.engines import EagerEngine
from embedl_deploy.lowering import EngineChoice
from embedl_deploy.report.partition_picture import partition_svg


@pytest.mark.parametrize("second", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_two_engines_share_a_model_that_the_first_cannot_take_alone(second: str) -> None:
    model = StemAndHead().eval()

    lowered = shared(["openvino", second])

    used = list(lowered.report.engines.values())
    assert (used[0], set(used)) == ("openvino", {"openvino", second})
    assert lowered.report.eager_nodes == ()
    reasons = {r.reason for r in lowered.report.refusals if r.engine == "openvino"}
    assert len(reasons) == 1
    assert "bf16" in reasons.pop()
    torch.testing.assert_close(lowered(IMAGE), model(IMAGE), rtol=2e-2, atol=2e-2)
    assert partition_svg(lowered).count("openvino") == 1


def test_what_no_engine_takes_runs_eager_between_the_parts_of_one() -> None:
    model = StemAndHead().eval()

    plan = plan_lowering(model, (IMAGE,), engines="openvino")
    lowered = lower(model, (IMAGE,), engines="openvino")

    assert plan.eager_nodes == ("to", "linear", "gelu", "linear_1", "to_1")
    assert lowered.report.eager_nodes == plan.eager_nodes
    assert list(lowered.report.engines.values()) == ["openvino", "openvino"]
    assert plan.coverage < 1
    torch.testing.assert_close(lowered(IMAGE), model(IMAGE), rtol=1e-4, atol=1e-4)


def test_measuring_weighs_the_parts_against_an_engine_for_all() -> None:
    engines: list[EngineChoice] = [EagerEngine, "openvino"]

    lowered = lower(StemAndHead().eval(), (IMAGE,), engines=engines, choose="measure")

    compared = {m.engine for m in lowered.report.whole}
    # Which parts OpenVINO wins, if any, is the machine's to say.
    assert all(re.fullmatch(r"eager|openvino \+ eager in \d parts", name) for name in compared)
    assert len(compared) != 1
    torch.testing.assert_close(lowered(IMAGE), StemAndHead().eval()(IMAGE), rtol=1e-4, atol=1e-4)
