import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedl_deploy.engines import InductorEngine, InductorEngineConfig


def test_describes_changed_fields_only() -> None:
    config = InductorEngineConfig(mode="max-autotune")

    assert InductorEngineConfig().describe() == ""
    assert config.describe() == "mode='max-autotune'"
    assert InductorEngine(config).describe() == "InductorEngine(mode='max-autotune')"


def test_key_is_the_same_in_another_process() -> None:
    code = (
        "import torch; from embedl_deploy.engines import InductorEngine, InductorEngineConfig;"
        "print(InductorEngine(InductorEngineConfig(autocast_enabled=True,"
        " autocast_dtype=torch.bfloat16)).key())"
    )
    config = InductorEngineConfig(autocast_enabled=True, autocast_dtype=torch.bfloat16)

    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()

    assert printed == InductorEngine(config).key()
    assert printed.startswith("InductorEngine_")
    assert InductorEngineConfig().key() != config.key()


def test_comes_back_from_its_dict_and_is_written_as_json(tmp_path: Path) -> None:
    config = InductorEngineConfig(options={"freezing": True}, autocast_dtype=torch.float16)

    config.to_json(tmp_path / "config.json")

    assert InductorEngineConfig.from_dict(config.to_dict()) == config
    assert '"torch.float16"' in (tmp_path / "config.json").read_text()


def test_unknown_fields_are_errors() -> None:
    with pytest.raises(ValueError, match=r"has no field colour; it has .*mode"):
        InductorEngineConfig.from_dict({"colour": "red"})


def test_mode_and_options_clash() -> None:
    with pytest.raises(ValueError, match="give mode or options, not both"):
        InductorEngineConfig(mode="max-autotune", options={"freezing": True})


def test_unknown_modes_and_integer_autocast_are_errors() -> None:
    with pytest.raises(ValueError, match="mode must be one of default, reduce-overhead"):
        InductorEngineConfig.from_dict({"mode": "fastest"})
    with pytest.raises(ValueError, match="autocast_dtype must be a float type"):
        InductorEngineConfig(autocast_dtype=torch.int8)
