import json
from collections import OrderedDict
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.export import Dim
from torch.fx import GraphModule
from torchao.core.config import AOBaseConfig
from torchao.quantization import (
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
)

from embedl_deploy import load_lowered, lower
from embedl_deploy.engines import TorchAOEngine, TorchAOEngineConfig
from embedl_deploy.engines.linear_layers import with_linear_layers
from embedl_deploy.engines.torchao_presets import Preset
from embedl_deploy.engines.torchao_weights import quantize_layers
from embedl_deploy.errors import BuildError
from embedl_deploy.lowering.candidates import candidates_of

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
    given = Int8DynamicActivationInt8WeightConfig()
    spelled = TorchAOEngineConfig(quantization_config=given)

    assert TorchAOEngine(preset).key() == TorchAOEngine(spelled).key()
    assert preset == spelled
    assert given == Int8DynamicActivationInt8WeightConfig()
    assert TorchAOEngine(preset).key() != TorchAOEngine().key()
    assert TorchAOEngineConfig.from_dict(preset.to_dict()).key() == preset.key()


def test_a_configuration_given_leaves_inductors_settings_alone() -> None:
    before = inductor_config.save_config_portable()
    layers = with_linear_layers(two_layers())

    config = TorchAOEngineConfig(quantization_config=Int8DynamicActivationInt8WeightConfig())
    quantize_layers(layers, config.quantization_config, None)

    kinds = {type(layer.weight.data).__name__ for layer in layers.by_name.values()}
    assert kinds == {"Int8Tensor"}
    assert inductor_config.save_config_portable() == before


def test_a_mode_is_checked_as_inductors_is() -> None:
    with pytest.raises(ValueError, match=r"mode must be one of default, .* got 'fastest'"):
        TorchAOEngineConfig.from_dict({"mode": "fastest"})
    with pytest.raises(ValueError, match="give mode or options, not both"):
        TorchAOEngineConfig(mode="default", options={})


def test_engines_whose_filter_has_no_name_are_compared_by_their_settings() -> None:
    configs = [
        TorchAOEngineConfig(filter_fn=lambda _module, path: path == "0"),
        TorchAOEngineConfig(filter_fn=lambda _module, path: path == "2"),
    ]
    engines = [TorchAOEngine(config) for config in configs]
    again = TorchAOEngine(replace(configs[0], quantization=None))
    graph = torch.export.export(two_layers(), (X,)).module(check_guards=False)
    assert isinstance(graph, GraphModule)

    found = candidates_of(graph, [*engines, again], {})

    assert list(found.engines.values()) == engines


def sizes_to_1000() -> tuple[dict[int, Dim]]:
    return ({0: Dim("batch", min=2, max=1000)},)


@pytest.mark.parametrize("flat", [False, True])
def test_declared_sizes_are_compiled_once(flat: bool) -> None:
    module = two_layers()
    spec = None if flat else SimpleNamespace(dynamic_shapes=sizes_to_1000())
    program = torch.export.export(module, (X,), dynamic_shapes=sizes_to_1000())
    given = program.module(check_guards=False) if flat else module
    engine = TorchAOEngine().build(given, spec, [(X,)])

    saved = cast("dict[str, object]", as_saved(engine.to_dict()))
    loaded = TorchAOEngine.from_dict(given, saved)
    loaded.deploy()
    outcome(loaded)
    with torch.compiler.set_stance("fail_on_recompile"):
        outputs = [outcome(one, X.repeat(7, 1)) for one in (engine, loaded)]

    expected = outcome(engine).repeat(7, 1)
    torch.testing.assert_close(outputs, [expected] * 2, rtol=1e-3, atol=1e-3)


def test_preset_and_config_exclude_each_other() -> None:
    config = TorchAOEngineConfig(quantization="int8wo").quantization_config

    with pytest.raises(ValueError, match="exactly one of quantization and quantization_config"):
        TorchAOEngineConfig(quantization="int8wo", quantization_config=config)
    with pytest.raises(ValueError, match="needs quantization_config=None"):
        replace(TorchAOEngineConfig(quantization="int8dq"), fullgraph=True)
    preset = TorchAOEngineConfig(quantization="int8dq")
    assert replace(preset, quantization_config=None, fullgraph=True).fullgraph
    with pytest.raises(ValueError, match="quantization must be one of int8wo"):
        TorchAOEngineConfig.from_dict({"quantization": "int2"})


def test_a_filter_is_saved_by_its_name_only() -> None:
    local = TorchAOEngineConfig(filter_fn=lambda module, path: only_wide(module, path))

    with pytest.raises(ValueError, match="saved by its name"):
        local.to_dict()


@pytest.mark.parametrize(
    ("name", "because"),
    [
        ("no_such_package:chooses", "is not found: No module named 'no_such_package'"),
        ("math:no_such_function", "is not found: module 'math' has no attribute"),
        ("math:pi", "must be a function, it is a float"),
        ("", "is not found"),
    ],
)
def test_a_filter_that_is_not_there_is_named(name: str, because: str) -> None:
    saved = {**TorchAOEngineConfig().to_dict(), "filter_fn": name}

    with pytest.raises(ValueError, match=because):
        TorchAOEngineConfig.from_dict(saved)


class Choices:
    @staticmethod
    def wide(module: nn.Module, path: str) -> bool:
        return only_wide(module, path)


def test_a_filter_may_be_a_static_method() -> None:
    saved = TorchAOEngineConfig(filter_fn=Choices.wide).to_dict()

    assert TorchAOEngineConfig.from_dict(saved).filter_fn is Choices.wide


def test_says_what_hardware_it_lacks() -> None:
    engine = TorchAOEngine(TorchAOEngineConfig(quantization="fp8dq"))

    with pytest.raises(BuildError, match=r"8\.9, got cpu, for 0.weight \[64, 64\]"):
        engine.build(two_layers(), None, [(X,)])


def test_a_module_without_linear_layers_is_refused() -> None:
    with pytest.raises(BuildError, match="the module has none"):
        TorchAOEngine().build(nn.ReLU(), None, [(X,)])


def outcome(engine: TorchAOEngine, x: Tensor = X) -> Tensor:
    output = engine.infer(x)
    assert isinstance(output, Tensor)
    return output


def as_saved(value: object) -> object:
    """Returns a state as a checkpoint gives it back: JSON beside tensors, no other object."""
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value)
        return {key: as_saved(inner) for key, inner in pairs.items()}
    if isinstance(value, Tensor):
        assert type(value) is Tensor
        return value.clone()
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("preset", ["int8wo", "int8dq", "fp8wo"])
def test_a_checkpoint_holds_the_quantized_weights(preset: Preset) -> None:
    built = TorchAOEngine(TorchAOEngineConfig(quantization=preset)).build(
        two_layers(), None, [(X,)]
    )
    saved = as_saved(built.to_dict())
    emptied = two_layers()
    for name in ("0.weight", "2.weight"):
        emptied.get_parameter(name).zero_()

    loaded = TorchAOEngine.from_dict(emptied, cast("dict[str, object]", saved))
    loaded.deploy(None)

    assert torch.equal(outcome(loaded), outcome(built))
    assert not emptied.get_parameter("0.weight").any()


def test_a_checkpoint_fits_only_the_module_it_was_made_from() -> None:
    state = TorchAOEngine().build(two_layers(), None, [(X,)]).to_dict()

    with pytest.raises(ValueError, match=r"no linear layer '2' with a weight \[32, 64\]"):
        TorchAOEngine.from_dict(nn.Sequential(nn.Linear(64, 64)).eval(), state)
    with pytest.raises(ValueError, match="lacks its quantized weights"):
        TorchAOEngine.from_dict(two_layers(), {**state, TorchAOEngine.STATE_WEIGHTS: None})


@pytest.mark.parametrize("flat", [False, True])
def test_a_filter_sees_the_models_own_paths_and_survives_a_checkpoint(flat: bool) -> None:
    module = two_layers()
    given = torch.export.export(module, (X,)).module(check_guards=False) if flat else module
    engine = TorchAOEngine(TorchAOEngineConfig(filter_fn=only_wide))

    engine.build(given, None, [(X,)])
    state = engine.to_dict()
    read = TorchAOEngineConfig.from_dict(cast("dict[str, object]", state["config"]))

    tensors = cast("dict[str, dict[str, Tensor]]", state[TorchAOEngine.STATE_WEIGHTS])["tensors"]
    assert sorted({tuple(t.shape) for t in tensors.values() if t.dim() == 2}) == [(64, 1), (64, 64)]
    assert read.filter_fn is only_wide
    assert read.to_dict()["filter_fn"] == f"{only_wide.__module__}:only_wide"


def test_a_filter_that_chooses_nothing_is_named() -> None:
    config = TorchAOEngineConfig(filter_fn=lambda _module, path: path == "encoder")

    with pytest.raises(BuildError, match=r"chooses none of the 2 linear layers \(0, 2"):
        TorchAOEngine(config).build(two_layers(), None, [(X,)])


def test_layers_are_quantized_each_as_its_name_says() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]).eval()
    by_name: OrderedDict[str, AOBaseConfig | None] = OrderedDict(
        {
            "0": Int8WeightOnlyConfig(),
            "1": None,
            "2.weight": None,
            "re:[2-3]": Int8WeightOnlyConfig(),
        }
    )
    config = TorchAOEngineConfig(quantization_config=FqnToConfig(by_name))

    engine = TorchAOEngine(config).build(module, None, [(X,)])
    state = engine.to_dict()
    read = TorchAOEngineConfig.from_dict(cast("dict[str, object]", state["config"]))
    loaded = TorchAOEngine.from_dict(module, state)
    loaded.deploy("cpu")

    tensors = cast("dict[str, dict[str, Tensor]]", state[TorchAOEngine.STATE_WEIGHTS])["tensors"]
    assert {name.split(".")[0] for name in tensors} == {"0", "3"}
    assert TorchAOEngine(read).key() == engine.key()
    assert torch.equal(cast("Tensor", loaded.infer(X)), cast("Tensor", engine.infer(X)))
    by_name["1"] = Int4WeightOnlyConfig(group_size=64)
    refused = TorchAOEngine(TorchAOEngineConfig(quantization_config=FqnToConfig(by_name)))
    with pytest.raises(BuildError, match=r"needs a CUDA device .*, got cpu, for 1.weight"):
        refused.build(module, None, [(X,)])


def test_a_layer_that_torchao_would_skip_or_refuse_is_named_with_its_shape() -> None:
    skipped = TorchAOEngineConfig(quantization_config=Int4WeightOnlyConfig(group_size=128))
    layers = with_linear_layers(two_layers())
    with pytest.raises(BuildError, match=r"groups of 128, which do not divide 0.weight \[64, 64\]"):
        quantize_layers(layers, skipped.quantization_config, None)
    with pytest.raises(BuildError, match=r"cannot quantize 0.weight \[64, 64\] with object: \w"):
        quantize_layers(layers, object(), None)


def test_a_lowered_model_is_saved_with_its_quantized_weights(tmp_path: Path) -> None:
    module = two_layers()
    lowered = lower(module, (X,), engines=[TorchAOEngineConfig(quantization="int8dq")])

    lowered.save(tmp_path / "model.zip")
    loaded = load_lowered(tmp_path / "model.zip")

    assert torch.equal(loaded(X), lowered(X))
    assert not torch.equal(lowered(X), module(X))
