import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from embedl_deploy.errors import OutputPathError, PlanError
from embedl_deploy.patterns.conversion import RemoveIdentity
from embedl_deploy.patterns.fusion import FuseLinearActivation
from embedl_deploy.rewriting import TransformationPlan, apply_plan, make_plan
from embedl_deploy.tracing import trace

ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
RULES = (RemoveIdentity, FuseLinearActivation)


def layers(count: int = 3, *, front: tuple[nn.Module, ...] = ()) -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.ReLU()) for _ in range(count)]
    return nn.Sequential(*front, *blocks).eval()


def saved_with_veto(path: Path, model: nn.Module, module: str) -> TransformationPlan:
    plan = make_plan(trace(model, (ROW,)), RULES, "inductor")
    for match in plan.sites():
        if match.stage == "fusion" and str(match.root.target).startswith(module):
            match.apply = False
    plan.save(path)
    return plan


def test_a_plan_is_replayed_on_retrained_weights(tmp_path: Path) -> None:
    saved_with_veto(tmp_path / "plan.json", layers(), "1.")
    retrained = layers()

    plan = TransformationPlan.load(tmp_path / "plan.json", retrained, (ROW,))
    result, report = apply_plan(plan)

    assert report.counts() == {"remove-identity": 3, "fuse-linear-activation": 2}
    assert report.backend == "inductor"
    assert [site.reason for site in report.refusals()] == ["vetoed in the saved plan"]
    assert torch.equal(result(ROW), retrained(ROW))


def test_the_file_is_made_to_be_reviewed(tmp_path: Path) -> None:
    saved_with_veto(tmp_path / "plan.json", layers(), "1.")

    content = json.loads((tmp_path / "plan.json").read_text())

    assert content["patterns"] == ["remove-identity", "fuse-linear-activation"]
    fusions = [site for site in content["sites"] if site["stage"] == "fusion"]
    assert [site["apply"] for site in fusions] == [True, False, True]
    assert {"module", "source", "fingerprint", "nodes"} <= set(fusions[0])


def test_a_plan_survives_a_change_elsewhere_in_the_model(tmp_path: Path) -> None:
    saved_with_veto(tmp_path / "plan.json", layers(), "1.")
    grown = layers(front=(nn.Tanh(),))

    plan = TransformationPlan.load(tmp_path / "plan.json", grown, (ROW,))

    assert not plan.missing
    assert sum(match.apply for match in plan.sites()) == 5


def test_a_site_that_is_gone_is_named(tmp_path: Path) -> None:
    saved_with_veto(tmp_path / "plan.json", layers(3), "9.")
    shorter = layers(2)

    with pytest.raises(PlanError, match=r"no longer fits .* fuse-linear-activation at %"):
        TransformationPlan.load(tmp_path / "plan.json", shorter, (ROW,))
    plan = TransformationPlan.load(tmp_path / "plan.json", shorter, (ROW,), strict=False)

    assert len(plan.missing) == 2
    assert "module 2.2" in plan.missing[1]
    assert apply_plan(plan)[1].applied_count == 4


def test_a_new_site_is_left_alone(tmp_path: Path) -> None:
    saved_with_veto(tmp_path / "plan.json", layers(2), "9.")

    plan = TransformationPlan.load(tmp_path / "plan.json", layers(3), (ROW,))
    _, report = apply_plan(plan)

    assert report.applied_count == 4
    assert "does not hold this site" in str(next(report.refusals()).reason)


def test_a_changed_site_does_not_take_the_place_of_one_that_fits(tmp_path: Path) -> None:
    """The first of three equal blocks is gone: the veto must stay with the second."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))).eval()
    saved_with_veto(tmp_path / "plan.json", model, "1.")
    model[0] = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Tanh())

    plan = TransformationPlan.load(tmp_path / "plan.json", model, (ROW,), strict=False)

    decided = {str(match.root.target): match.apply for match in plan.sites()}
    assert decided["1.1"] is False
    assert decided["2.1"] is True


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no plan"),
        ("[]", "is no plan of format 1"),
        ('{"format": 2}', "is no plan of format 1"),
        ('{"format": 1}', "is damaged: it lacks backend, patterns, sites"),
        (
            '{"format": 1, "backend": null, "patterns": [], "sites": [{"stage": "fusion"}]}',
            "it lacks pattern, site, nodes, apply of site 0",
        ),
        (
            '{"format": 1, "backend": null, "patterns": ["fuse-all"], "sites": []}',
            "names patterns that are not defined here: fuse-all",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "plan.json").write_text(content)

    with pytest.raises(PlanError, match=reason):
        TransformationPlan.load(tmp_path / "plan.json", layers(1), (ROW,))


def test_paths_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    plan = make_plan(trace(layers(1), (ROW,)), RULES)

    with pytest.raises(OutputPathError, match="cannot be written"):
        plan.save(tmp_path / "no" / "plan.json")
    with pytest.raises(PlanError, match="cannot be read"):
        TransformationPlan.load(tmp_path / "plan.json", layers(1), (ROW,))


def test_plans_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from embedl_deploy.backends.tensorrt import TENSORRT as T\n"
        "from embedl_deploy.rewriting import make_plan\n"
        "from embedl_deploy.tracing import trace\n"
        "block = lambda: (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.0))\n"
        "model = nn.Sequential(*block(), *block(), nn.Flatten(), nn.Linear(48, 4), nn.GELU())\n"
        "graph = trace(model.eval(), (torch.ones(1, 3, 4, 4),))\n"
        "plan = make_plan(graph, (*T.conversion_patterns, *T.fusion_patterns))\n"
        "plan.save(sys.argv[1])\n"
    )
    plans: set[bytes] = set()
    for seed in ("0", "1", "2"):
        path = tmp_path / f"{seed}.json"
        subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
        plans.add(path.read_bytes())

    assert len(plans) == 1
    assert b"fuse-conv-norm-activation" in plans.pop()


def changed(path: Path, **fields: object) -> Path:
    """Writes a plan of one site in which some fields are others."""
    make_plan(trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (ROW,)), RULES).save(path)
    content = json.loads(path.read_text())
    top = {key: value for key, value in fields.items() if key in ("backend", "patterns", "sites")}
    content.update(top)
    if "sites" not in top:
        content["sites"][0].update({key: fields[key] for key in fields if key not in top})
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"apply": "no"}, 'apply must be true or false, got "no", in the entry of site 0'),
        ({"apply": 1}, "apply must be true or false, got 1"),
        ({"apply": None}, "apply must be true or false, got null"),
        ({"stage": "fuzion"}, "stage must be one of conversion, fusion, .*, got 'fuzion'"),
        ({"nodes": "relu"}, "nodes must be a list of names, got 'relu'"),
        ({"site": None}, "site must be a name, got None"),
        (
            {"pattern": "fuse-linaer-activation"},
            "site 0 of .* is of pattern 'fuse-linaer-activation', which the file does not list: "
            "did you mean 'fuse-linear-activation'",
        ),
        ({"patterns": "fuse-linear-activation"}, "its patterns must be a list of names"),
        (
            {"patterns": ["fuse-linaer-activation"], "pattern": "fuse-linaer-activation"},
            r"not defined here: fuse-linaer-activation \(the nearest is fuse-linear-activation\)",
        ),
        ({"backend": 3}, "its backend must be a name or null, got 3"),
        ({"sites": {}}, "its sites must be a list, got {}"),
        ({"sites": ["relu"]}, "a list of fields must stand there, got 'relu', in place of site 0"),
    ],
)
def test_a_field_that_holds_something_else_is_named(
    tmp_path: Path, fields: dict[str, object], reason: str
) -> None:
    path = changed(tmp_path / "plan.json", **fields)

    for strict in (True, False):
        with pytest.raises(PlanError, match=reason):
            TransformationPlan.load(
                path, nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (ROW,), strict=strict
            )


def test_what_a_lenient_load_leaves_out_is_in_the_report(tmp_path: Path) -> None:
    path = changed(tmp_path / "plan.json", module="", fingerprint=None, nodes=["gone"])
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()

    with pytest.raises(PlanError, match=r"fuse-linear-activation at %_1\. Plan anew.*--no-strict"):
        TransformationPlan.load(path, model, (ROW,))
    plan = TransformationPlan.load(path, model, (ROW,), strict=False)
    _, report = apply_plan(plan)

    assert report.notes == (
        "the saved plan holds fuse-linear-activation at %_1, which the model no longer has",
    )
