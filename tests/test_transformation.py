import pytest
import torch
from torch import Tensor, nn

from embedl_deploy import transform
from embedl_deploy.backend import reset_backends, use_backend
from embedl_deploy.errors import PreconditionError
from embedl_deploy.graph import TracedModule, graph_text
from embedl_deploy.patterns.fusion import FuseLinearActivation
from embedl_deploy.transformation import apply_transformation_plan, get_transformation_plan

ROW = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        return {"image": torch.relu(self.norm(self.conv(x)) + x) * scale}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def test_transform_keeps_the_output_keys_and_parameters() -> None:
    model = Block().eval()

    result = transform(model, (IMAGE,), {"scale": 2.0}, backend="tensorrt")

    assert isinstance(result.model, TracedModule)
    assert result.report.counts() == {"fuse-conv-norm-add-activation": 1}
    assert result.report.backend == "tensorrt"
    assert set(result.model.state_dict()) == set(model.state_dict())
    assert {id(p) for p in result.model.parameters()} == {id(p) for p in model.parameters()}
    found = result.model(IMAGE, scale=2.0)
    assert list(found) == ["image"]
    torch.testing.assert_close(found["image"], model(IMAGE, scale=2.0)["image"])


def test_the_model_itself_is_left_as_it_was() -> None:
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = list(model.children())

    transform(model, (ROW,), patterns=[FuseLinearActivation]).model.train()

    assert list(model.children()) == modules
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_copy_has_parameters_of_its_own() -> None:
    model = mlp()

    result = transform(model, (ROW,), patterns=[FuseLinearActivation], copy=True)

    assert not {id(p) for p in result.model.parameters()} & {id(p) for p in model.parameters()}


def test_the_plan_of_a_backend_and_its_patterns_give_the_same_graph() -> None:
    model = Block().eval()

    with use_backend("tensorrt"):
        active = transform(model, (IMAGE,)).model
    named = transform(model, (IMAGE,), backend="tensorrt").model

    assert graph_text(active) == graph_text(named)


def test_plan_veto_apply() -> None:
    model = mlp()
    plan = get_transformation_plan(model, (ROW,), patterns=[FuseLinearActivation])
    (match,) = plan.sites()

    match.apply = False
    result = apply_transformation_plan(plan)

    assert result.report["applied_count"] == 0
    assert result.report["skipped"] == ["fuse-linear-activation"]
    assert result.matches == (match,)
    assert torch.equal(result.model(ROW), model(ROW))


def test_the_report_reads_as_attributes_as_items_and_as_text() -> None:
    report = transform(mlp(), (ROW,), patterns=[FuseLinearActivation]).report

    assert report.applied == report["applied"] == ["fuse-linear-activation"]
    assert dict(report) == {
        "applied": ["fuse-linear-activation"],
        "skipped": [],
        "applied_count": 1,
        "skipped_count": 0,
        "total_count": 1,
    }
    assert str(report).splitlines()[:2] == [
        "1 applied, 0 left alone",
        "     1 × fuse-linear-activation",
    ]
    with pytest.raises(KeyError, match="a report has the items applied, skipped"):
        report["coverage"]


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(PreconditionError, match=r"call model\.eval\(\) first"):
        transform(mlp().train(), (ROW,), patterns=[])


def test_a_program_exported_in_training_mode_is_refused() -> None:
    program = torch.export.export(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train(), (IMAGE,)
    )

    with pytest.raises(PreconditionError, match=r"traced in training mode"):
        transform(program, patterns=[])


def test_a_result_can_be_transformed_again() -> None:
    model = mlp()
    first = transform(model, (ROW,), patterns=[FuseLinearActivation]).model

    second = transform(first, (ROW,), patterns=[FuseLinearActivation])

    assert second.report.applied_count == 0
    assert graph_text(second.model) == graph_text(first)


def test_dynamic_shapes_stay_dynamic() -> None:
    model = mlp()
    rows = torch.export.Dim("rows", min=2, max=50)

    result = transform(model, (ROW,), patterns=[FuseLinearActivation], dynamic_shapes=({0: rows},))

    for count in (2, 3, 49):
        x = torch.randn(count, 4)
        torch.testing.assert_close(result.model(x), model(x))
    program = torch.export.export(result.model, (ROW,), dynamic_shapes=({0: rows},))
    assert program.range_constraints


def test_without_patterns_and_backend_the_known_ones_are_named() -> None:
    reset_backends()

    with pytest.raises(RuntimeError, match=r"inductor.*tensorrt"):
        transform(mlp(), (ROW,))
