import json
from pathlib import Path

import pytest
from torch import nn

from embedl_deploy.errors import CheckpointError
from embedl_deploy.quantization import (
    CalibrationMethod,
    ModulesToSkip,
    Precision,
    QuantConfig,
    SmoothQuantConfig,
    TensorQuantConfig,
)
from embedl_deploy.quantization.config_file import (
    config_as_json,
    config_from_json,
    load_config,
    save_config,
)

CONFIGS = (
    QuantConfig(),
    QuantConfig(
        activation=TensorQuantConfig(
            Precision.INT16, calibration_method=CalibrationMethod.PERCENTILE, percentile=99.5
        ),
        weight=TensorQuantConfig(Precision.INT4, per_channel=True),
        skip=ModulesToSkip(
            stub={"encoder.*", nn.Conv2d}, weight={"b", "a", nn.Linear}, smooth={"head"}
        ),
        smooth=SmoothQuantConfig(0.25, search=False),
        bias_correction=False,
    ),
    QuantConfig(activation=None, smooth=None),
    QuantConfig(weight=None),
)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_comes_back_as_it_was(config: QuantConfig, tmp_path: Path) -> None:
    save_config(config, tmp_path / "config.json")

    assert load_config(tmp_path / "config.json") == config


def test_the_same_configuration_gives_the_same_text() -> None:
    names = [f"layer{number}" for number in range(20)]

    one, two = (
        json.dumps(config_as_json(QuantConfig(skip=ModulesToSkip(weight=rules))))
        for rules in (names, reversed(names))
    )

    assert one == two


def test_what_is_left_out_has_its_default() -> None:
    assert config_from_json({"bias_correction": False}) == QuantConfig(bias_correction=False)


class Own(nn.Linear):
    """A class that only the user's program knows."""


@pytest.mark.parametrize("rule", [nn.Linear(1, 1), Own])
def test_refuses_rules_that_no_file_can_hold(rule: nn.Module | type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="skip modules by name"):
        config_as_json(QuantConfig(skip=ModulesToSkip(weight={rule})))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "config must be a JSON object"),
        ({"weights": None}, "config has no 'weights'; it knows activation, weight"),
        ({"weight": {"precision": "int3"}}, "config.weight.precision must be one of int4, int8"),
        ({"weight": {"symmetric": 1}}, "config.weight.symmetric must be a bool, got 1"),
        ({"weight": {"symmetric": False}}, "weights must be symmetric"),
        ({"skip": {"stub": "encoder"}}, "config.skip.stub must be a list"),
        ({"skip": {"stub": [{"torch.nn": "functional"}]}}, "takes names and classes of torch.nn"),
        ({"smooth": {"strength": 2}}, "config.smooth: strength must lie in"),
    ],
)
def test_says_where_a_document_is_wrong(document: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_json(document)


def test_says_which_file_holds_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")

    with pytest.raises(CheckpointError, match=r"config\.json holds no configuration"):
        load_config(path)
