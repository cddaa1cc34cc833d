import json
import zipfile
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from embedl_deploy.deployment import load_lowered, lower
from embedl_deploy.errors import CheckpointError, LoweringError
from embedl_deploy.lowering import LoweredModule

X = torch.linspace(-1, 1, 256).reshape(1, 256)
LINEAR = 4 * 256 * 256


class Halves(nn.Module):
    """A linear for a runtime with a file of its own, one for eager, and a table for both."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.engine, self.inner = nn.Linear(256, 256), nn.Linear(256, 256)
        self.table = nn.Parameter(torch.empty(256))
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.inner(torch.cos(self.engine(x)) * self.table)) * self.table


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def lowered(request: pytest.FixtureRequest) -> LoweredModule:
    engines = {"engine.*": request.param, "*": "eager"}
    found = lower(Halves().eval(), (X,), None, engines, fallback=False)
    assert [part.failures for part in found.report.subgraphs] == [(), ()]
    return found


@pytest.fixture
def saved(lowered: LoweredModule, tmp_path: Path) -> Path:
    path = tmp_path / "model.lowered"
    lowered.save(path)
    return path


def weight_bytes(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return archive.getinfo("weights.safetensors").file_size


def test_without_fallback_a_file_holds_each_weight_once(
    lowered: LoweredModule, saved: Path
) -> None:
    loaded = load_lowered(saved)

    assert LINEAR < weight_bytes(saved) < LINEAR + 8000
    assert torch.equal(loaded(X), lowered(X))
    left_out = [name for name, value in loaded.state_dict().items() if value.is_meta]
    assert left_out == ["engine.weight", "engine.bias"]
    assert loaded.to("cpu") is loaded


def test_with_fallback_the_graph_keeps_them_all(tmp_path: Path) -> None:
    lowered = lower(Halves().eval(), (X,), None, {"engine.*": "onnxruntime", "*": "eager"})

    lowered.save(tmp_path / "model.lowered")

    assert weight_bytes(tmp_path / "model.lowered") > 2 * LINEAR
    assert not any(value.is_meta for value in lowered.state_dict().values())


def test_a_loaded_model_is_saved_alike(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.lowered"

    load_lowered(saved).save(again)

    assert weight_bytes(again) == weight_bytes(saved)
    assert torch.equal(load_lowered(again)(X), load_lowered(saved)(X))


def test_engines_that_hold_the_only_weights_cannot_be_built_anew(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"saved with fallback=False.*fallback=True"):
        load_lowered(saved, trust_engines=False)


def test_where_fallback_would_be_needed_is_an_error(saved: Path) -> None:
    loaded = load_lowered(saved)
    for slot in loaded.assembly.slots.values():
        if slot.label != "eager":
            slot.engine.deactivate()

    with pytest.raises(LoweringError, match="fallback=False forbids to run it eager"):
        loaded(X)


def test_a_file_cannot_ask_for_fallback_to_weights_that_it_lacks(saved: Path) -> None:
    _change(saved, {"fallback": True})

    assert load_lowered(saved).fallback is False


@pytest.mark.parametrize(
    "description", [["float32"], [{"$dtype": "float32"}, ["x"]], [3, [4]], "nothing"]
)
def test_a_damaged_description_is_refused(saved: Path, description: object) -> None:
    _change(saved, {"weights_left_out": {"engine.weight": description}})

    with pytest.raises(CheckpointError, match=r"weight engine\.weight is damaged"):
        load_lowered(saved)


def _change(path: Path, changes: dict[str, object]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    manifest = cast("dict[str, object]", json.loads(entries["manifest.json"]))
    entries["manifest.json"] = json.dumps({**manifest, **changes}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
