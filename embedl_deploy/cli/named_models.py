"""Models that can be asked for by name: torchvision's, timm's, transformers' and MiniLM."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from embedl_deploy.cli.demo.sentences import load_minilm, tokenize
from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas
from embedl_deploy.errors import MissingDependencyError, ModelSourceError

NamedModel = tuple[nn.Module, tuple[object, ...], dict[str, object]]

TOKENS = 128


@dataclass(frozen=True)
class ModelLibrary:
    """Where names of models come from."""

    names: Callable[[], Sequence[str]]
    """All names; empty where the library is not installed."""

    find: Callable[[str], str | None]
    """Returns the library's own spelling of a name, None if it has no such model."""

    load: Callable[[str], NamedModel]
    """Returns model, args and kwargs for a name that ``find`` returned."""

    has_random_weights: bool


class _Config(Protocol):
    use_cache: bool

    def to_dict(self) -> dict[str, object]: ...


_TINY = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "hidden_dim": 128, "vocab_size": 1000,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
"""Sizes of a ``-tiny`` model; each config takes the fields that it has."""


def _installed(package: str) -> ModuleType | None:
    if importlib.util.find_spec(package) is None:
        return None
    define_torchvision_schemas()
    return importlib.import_module(package)


def _required(package: str) -> ModuleType:
    module = _installed(package)
    if module is None:
        raise MissingDependencyError(
            f"{package} is not installed: pip install 'embedl-deploy[zoo]'"
        )
    return module


def _torchvision_names() -> list[str]:
    module = _installed("torchvision")
    return [] if module is None else list(module.models.list_models())


def _load_torchvision(name: str) -> NamedModel:
    model = cast(nn.Module, _required("torchvision").models.get_model(name, weights=None))
    if "inception" in name:
        return model, (torch.randn(1, 3, 299, 299),), {}
    is_video = name.startswith(("mc3", "mvit", "r2plus1d", "r3d", "s3d", "swin3d"))
    return model, (torch.randn(1, 3, 16, 224, 224) if is_video else _image(224),), {}


def _timm_names() -> list[str]:
    module = _installed("timm")
    return [] if module is None else cast(list[str], module.list_models())


def _load_timm(name: str) -> NamedModel:
    model = cast(nn.Module, _required("timm").create_model(name, pretrained=False))
    config = cast(dict[str, object], getattr(model, "default_cfg", {}))
    channels, height, width = cast(tuple[int, int, int], config.get("input_size", (3, 224, 224)))
    return model, (torch.randn(1, channels, height, width),), {}


def _transformers_names() -> list[str]:
    module = _installed("transformers")
    if module is None:
        return []
    types = cast(Sequence[str], list(module.CONFIG_MAPPING.keys()))
    return [*types, *(f"{name}-base" for name in types), *(f"{name}-tiny" for name in types)]


def _find_transformers(name: str) -> str | None:
    if name.removesuffix("-base") in (known := _transformers_names()) or name in known:
        return name
    is_class = name[:1].isupper() and name.isidentifier()
    module = _installed("transformers") if is_class else None
    return name if hasattr(getattr(module, name, None), "config_class") else None


def _load_transformers(name: str) -> NamedModel:
    transformers = _required("transformers")
    if name[:1].isupper():
        model_class = getattr(transformers, name)
        config = cast(_Config, model_class.config_class())
        config.use_cache = False
        model = cast(nn.Module, model_class(config))
    else:
        config = _config(transformers, name)
        model = cast(nn.Module, transformers.AutoModel.from_config(config))
    return model, (), dict(_transformers_inputs(name, model, config.to_dict()))


def _config(transformers: ModuleType, name: str) -> _Config:
    known = set(transformers.CONFIG_MAPPING.keys())
    model_type = name if name in known else name.removesuffix("-base").removesuffix("-tiny")
    config = cast(_Config, transformers.AutoConfig.for_model(model_type))
    if model_type != name and name.endswith("-tiny"):
        fields = config.to_dict()
        smaller = {key: value for key, value in _TINY.items() if key in fields}
        config = cast(_Config, transformers.AutoConfig.for_model(model_type, **smaller))
    config.use_cache = False
    return config


def _transformers_inputs(
    name: str, model: nn.Module, config: dict[str, object]
) -> dict[str, Tensor]:
    main = str(getattr(model, "main_input_name", ""))
    if main == "input_ids":
        vocabulary = config.get("vocab_size")
        highest = vocabulary if isinstance(vocabulary, int) else 1000
        ids = torch.randint(0, highest, (1, TOKENS))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if main == "pixel_values":
        size = config.get("image_size")
        channels = config.get("num_channels")
        height = size if isinstance(size, int) else 224
        return {main: torch.randn(1, channels if isinstance(channels, int) else 3, height, height)}
    raise ModelSourceError(
        f"no example inputs are known for transformers' {name} (its main input is {main!r}): "
        "write a factory that returns (model, args, kwargs) and name it as module:factory"
    )


def _load_minilm(_name: str) -> NamedModel:
    batch = tokenize(["A model is traced, rewritten, quantized, lowered and measured."])
    return load_minilm(), (batch.input_ids, batch.attention_mask), {}


def _find_minilm(name: str) -> str | None:
    return _MINILM if name.lower() in {_MINILM.lower(), "minilm"} else None


def _image(size: int) -> Tensor:
    return torch.randn(1, 3, size, size)


def _exactly(names: Callable[[], Sequence[str]]) -> Callable[[str], str | None]:
    return lambda name: name if name in names() else None


_MINILM = "all-MiniLM-L6-v2"

LIBRARIES: dict[str, ModelLibrary] = {
    "minilm": ModelLibrary(lambda: [_MINILM], _find_minilm, _load_minilm, False),
    "torchvision": ModelLibrary(
        _torchvision_names, _exactly(_torchvision_names), _load_torchvision, True
    ),
    "timm": ModelLibrary(_timm_names, _exactly(_timm_names), _load_timm, True),
    "transformers": ModelLibrary(_transformers_names, _find_transformers, _load_transformers, True),
}
"""In the order they are asked for a name that says no library."""
