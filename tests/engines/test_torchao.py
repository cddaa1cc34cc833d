from collections.abc import Generator

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from embedl_deploy.engines import TorchAOEngine, TorchAOEngineConfig
from embedl_deploy.errors import BuildError

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def without_gradients() -> Generator[None]:
    with torch.no_grad():
        yield


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def only_wide(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Linear) and not path.endswith("2")


def test_quantizes_a_copy_of_a_module_or_flat_graph() -> None:
    module = two_layers()
    weight = module.get_parameter("0.weight")
    program = torch.export.export(module, (X,)).module(check_guards=False)
    assert isinstance(program, GraphModule)

    for given in (module, program):
        engine = TorchAOEngine().build(given, None, [(X,)])
        output = engine.infer(X)
        assert isinstance(output, Tensor)
        relative = (output - module(X)).norm() / module(X).norm()
        assert 1e-5 < relative < 2e-2
    assert module.get_parameter("0.weight") is weight


def test_a_preset_and_its_config_share_one_key() -> None:
    preset = TorchAOEngineConfig(quantization="int8dq")
    spelled = TorchAOEngineConfig(quantization_config=preset.quantization_config)

    assert TorchAOEngine(preset).key() == TorchAOEngine(spelled).key()
    assert TorchAOEngine(preset).key() != TorchAOEngine().key()
    assert TorchAOEngineConfig.from_dict(preset.to_dict()).key() == preset.key()


def test_preset_and_config_exclude_each_other() -> None:
    config = TorchAOEngineConfig(quantization="int8wo").quantization_config

    with pytest.raises(ValueError, match="exactly one of quantization and quantization_config"):
        TorchAOEngineConfig(quantization="int8wo", quantization_config=config)
    with pytest.raises(ValueError, match="quantization must be one of int8wo"):
        TorchAOEngineConfig.from_dict({"quantization": "int2"})


def test_a_filter_is_saved_by_its_name_only() -> None:
    local = TorchAOEngineConfig(filter_fn=lambda module, path: only_wide(module, path))

    with pytest.raises(ValueError, match="saved by its name"):
        local.to_dict()


def test_says_what_hardware_it_lacks() -> None:
    engine = TorchAOEngine(TorchAOEngineConfig(quantization="fp8dq"))

    with pytest.raises(BuildError, match=r"needs a CUDA device .* 8\.9, got cpu"):
        engine.build(two_layers(), None, [(X,)])


def test_a_module_without_linear_layers_is_refused() -> None:
    with pytest.raises(BuildError, match="the module has none"):
        TorchAOEngine().build(nn.ReLU(), None, [(X,)])
