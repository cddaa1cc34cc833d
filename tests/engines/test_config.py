import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedl_deploy.engines import (
    InductorEngine,
    InductorEngineConfig,
    OnnxRuntimeEngineConfig,
    OpenVINOEngineConfig,
)


def test_describes_changed_fields_only() -> None:
    config = InductorEngineConfig(mode="max-autotune")

    assert InductorEngineConfig().describe() == ""
    assert config.describe() == "mode='max-autotune'"
    assert InductorEngine(config).describe() == "InductorEngine(mode='max-autotune')"


_KEYS = """
import torch
from embedl_deploy import engines
print(*[engine.key() for engine in (
    engines.EagerEngine(),
    engines.InductorEngine(engines.InductorEngineConfig(
        options={"freezing": True, "cpp_wrapper": False},
        autocast_enabled=True, autocast_dtype=torch.bfloat16)),
    engines.TorchAOEngine(engines.TorchAOEngineConfig(quantization="int8dq")),
    engines.TensorRTEngine(engines.TensorRTEngineConfig(
        rest_dtype=torch.float16, workspace_bytes=2**30)),
    engines.OnnxRuntimeEngine(engines.OnnxRuntimeEngineConfig(
        session_options={"b": "1", "a": "2"})),
    engines.OpenVINOEngine(engines.OpenVINOEngineConfig(
        hint="THROUGHPUT", properties={"NUM_STREAMS": "2", "CACHE_MODE": "x"})),
)])
"""


def test_keys_are_the_same_in_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    other = subprocess.run(
        [sys.executable, "-c", _KEYS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    ).stdout.split()

    exec(_KEYS, {})
    here = capsys.readouterr().out.split()

    assert other == here
    names = ["EagerEngine", "InductorEngine", "TorchAOEngine", "TensorRTEngine"]
    names += ["OnnxRuntimeEngine", "OpenVINOEngine"]
    assert [key.partition("_")[0] for key in here] == names
    assert len({key.partition("_")[2] for key in here}) == len(names)


def test_the_order_of_options_does_not_change_the_key() -> None:
    one = InductorEngineConfig(options={"freezing": True, "cpp_wrapper": False})
    two = InductorEngineConfig(options={"cpp_wrapper": False, "freezing": True})

    assert one.key() == two.key() != InductorEngineConfig().key()


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


@pytest.mark.parametrize("config_class", [OnnxRuntimeEngineConfig, OpenVINOEngineConfig])
def test_threads_are_counted_from_one(
    config_class: type[OnnxRuntimeEngineConfig] | type[OpenVINOEngineConfig],
) -> None:
    assert config_class(threads=1).threads == 1
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        config_class(threads=0)
