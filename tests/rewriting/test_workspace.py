"""Modules by their paths, and free names."""

import pytest
from torch import nn

from embedl_deploy.graph import TracedModule
from embedl_deploy.rewriting.workspace import Workspace, named_modules


def _shared() -> nn.Module:
    layer = nn.Linear(2, 2)
    empty = nn.Sequential()
    return nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer, empty), empty)


@pytest.mark.parametrize("remove_duplicate", [True, False])
def test_modules_come_in_torchs_order(remove_duplicate: bool) -> None:
    model = _shared()
    model.register_module("gap", None)
    expected = [*model.named_modules(remove_duplicate=remove_duplicate)]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]  # as torch types it
    assert list(named_modules(model, remove_duplicate=remove_duplicate)) == expected


def test_a_path_avoids_every_kind_of_name() -> None:
    graph_module = TracedModule(deferred=True)
    graph_module.register_parameter("linear", nn.Parameter(nn.Linear(1, 1).weight))
    graph_module.register_buffer("linear_1", None)
    graph_module.add_module("linear_2", nn.Identity())
    graph_module.__dict__["linear_3"] = "a plain attribute"
    paths = [Workspace(graph_module).path_for(nn.Linear(1, 1), "")[0] for _ in range(2)]
    assert paths == ["linear_4", "linear_5"]
    assert Workspace(graph_module).path_for(nn.ReLU(), "train")[0] == "train.relu"


def test_new_modules_take_over_the_mode_of_the_graph() -> None:
    graph_module = TracedModule(deferred=True).eval()
    layer = nn.Dropout()
    Workspace(graph_module).path_for(layer, "")
    assert not layer.training
