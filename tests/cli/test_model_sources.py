from pathlib import Path

import pytest
import torch
from torch import nn

from embedl_deploy.cli.model_sources import load_model
from embedl_deploy.errors import ModelSourceError

FACTORIES = """
import torch
from torch import nn

def pair():
    return nn.Linear(4, 2), (torch.ones(1, 4),)

def one_tensor():
    return nn.Linear(4, 2), torch.ones(1, 4)

def keywords():
    return nn.Linear(4, 2), (), {"input": torch.ones(3, 4)}

def bare():
    return nn.Linear(4, 2)

def number():
    return 3

model = nn.Linear(4, 2)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "factories_of_test.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return "factories_of_test"


@pytest.mark.parametrize("name", ["pair", "one_tensor", "keywords"])
def test_a_factory_gives_model_and_inputs(factories: str, name: str) -> None:
    loaded = load_model(f"{factories}:{name}")

    output = loaded.call()

    assert isinstance(output, torch.Tensor)
    assert output.shape[-1] == 2
    assert loaded.model.training  # left as the factory made it


@pytest.mark.parametrize("name", ["bare", "model"])
def test_shapes_stand_in_for_missing_inputs(factories: str, name: str) -> None:
    loaded = load_model(f"{factories}:{name}", input_shapes=((5, 4),))

    output = loaded.call()

    assert isinstance(output, torch.Tensor)
    assert output.shape == (5, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare", "without example inputs"),
        ("number", "must return a torch.nn.Module"),
        ("piar", "did you mean pair"),
        ("torch", "a module, not a factory"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused(factories: str, name: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        load_model(f"{factories}:{name}")


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelSourceError, match="cannot import 'no_such_module_here'"):
        load_model("no_such_module_here:factory")


def test_a_saved_program_is_loaded_with_its_inputs(tmp_path: Path) -> None:
    model, example = nn.Linear(4, 2).eval(), torch.ones(1, 4)
    torch.export.save(torch.export.export(model, (example,)), tmp_path / "linear.pt2")

    loaded = load_model(str(tmp_path / "linear.pt2"))

    assert torch.equal(torch.as_tensor(loaded.call()), model(example))


def test_a_saved_program_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "linear.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 2).eval(), (torch.ones(1, 4),)), path)
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(ModelSourceError, match="is cut short"):
        load_model(str(path))


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelSourceError, match=r"there is no file absent\.pt2"):
        load_model("absent.pt2")


@pytest.mark.parametrize("name", ["resnet18", "transformers:bert-tiny", "timm:test_vit"])
def test_a_library_name_gives_a_model_that_runs(name: str) -> None:
    loaded = load_model(name)

    with torch.no_grad():
        output = loaded.call()

    assert output is not None
    assert loaded.has_random_weights
    assert not loaded.model.training


def test_random_weights_are_the_same_for_the_same_seed() -> None:
    first, second = (load_model("timm:test_vit", seed=seed) for seed in (3, 3))

    assert torch.equal(torch.as_tensor(first.call()), torch.as_tensor(second.call()))


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(ModelSourceError, match="resnet50"):
        load_model("torchvision:resnet51")


def test_random_inputs_keep_masks_and_draw_tokens() -> None:
    loaded = load_model("transformers:bert-tiny")

    first, second = (kwargs for _, kwargs in loaded.random_inputs(2))

    assert torch.equal(torch.as_tensor(first["attention_mask"]), torch.ones(1, 128))
    assert not torch.equal(
        torch.as_tensor(first["input_ids"]), torch.as_tensor(second["input_ids"])
    )
