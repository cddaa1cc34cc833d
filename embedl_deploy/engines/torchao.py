"""TorchAO: weights of linear layers in few bits, compiled by Inductor in this process."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import nn
from torch.fx import Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.engines.inductor import Mode
from embedl_deploy.engines.inductor_build import first_line, require_compiler
from embedl_deploy.engines.inductor_programs import CompiledProgram, JustInTime
from embedl_deploy.engines.integer_graph import is_quantization, operation
from embedl_deploy.engines.linear_layers import with_linear_layers
from embedl_deploy.errors import BuildError
from embedl_deploy.graph.nodes import value_of
from embedl_deploy.rewriting.refusal import Refusal

Preset = Literal["int8wo", "int8dq", "int4wo", "fp8wo", "fp8dq", "mxfp8dq", "nvfp4dq"]
Filter = Callable[[nn.Module, str], bool]

_PRESETS = {
    "int8wo": ("torchao.quantization", "Int8WeightOnlyConfig"),
    "int8dq": ("torchao.quantization", "Int8DynamicActivationInt8WeightConfig"),
    "int4wo": ("torchao.quantization", "Int4WeightOnlyConfig"),
    "fp8wo": ("torchao.quantization", "Float8WeightOnlyConfig"),
    "fp8dq": ("torchao.quantization", "Float8DynamicActivationFloat8WeightConfig"),
    "mxfp8dq": ("torchao.prototype.mx_formats", "MXDynamicActivationMXWeightConfig"),
    "nvfp4dq": ("torchao.prototype.mx_formats", "NVFP4DynamicActivationNVFP4WeightConfig"),
}
_CAPABILITY = {
    "Float8DynamicActivationFloat8WeightConfig": (8, 9),
    "Int4WeightOnlyConfig": (8, 0),
    "MXDynamicActivationMXWeightConfig": (10, 0),
    "NVFP4DynamicActivationNVFP4WeightConfig": (10, 0),
}
"""The least CUDA compute capability that each configuration runs on; the rest run anywhere."""


@dataclass(frozen=True)
class TorchAOEngineConfig(EngineConfig):
    """What torchao does to linear layers, and how torch.compile is called.

    Neither ``quantization`` nor ``quantization_config`` means ``int8wo``: it runs everywhere.
    """

    quantization: Preset | None = None
    """A preset; fills ``quantization_config``, so that a preset and its config are one key."""

    quantization_config: object | None = None
    """Any torchao configuration."""

    filter_fn: Filter | None = None
    """Which modules, by (module, path); None: every linear layer. Saved only by its name."""

    fullgraph: bool = False
    dynamic: bool | None = None
    mode: Mode | None = None
    options: dict[str, object] | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization_config is not None:
            raise ValueError("give exactly one of quantization and quantization_config, got both")
        if self.mode is not None and self.options is not None:
            raise ValueError("give mode or options, not both: a mode is a set of options")
        if self.quantization_config is None:
            chosen = self.quantization or "int8wo"
            if chosen not in _PRESETS:
                presets = ", ".join(get_args(Preset))
                raise ValueError(f"quantization must be one of {presets}, got {chosen!r}")
            object.__setattr__(self, "quantization_config", _preset(chosen))

    def describe(self) -> str:
        kind = type(self.quantization_config).__name__
        shown = {name: value for name, value in vars(self).items() if name[:5] != "quant"}
        changed = [
            f"{name}={value!r}" for name, value in shown.items() if value not in (None, False)
        ]
        return ", ".join([kind, *changed])

    def to_dict(self) -> dict[str, object]:
        from torchao.core.config import config_to_dict

        return {
            "quantization_config": config_to_dict(self.quantization_config),  # pyright: ignore[reportArgumentType]  # a torchao configuration
            "filter_fn": None if self.filter_fn is None else _name_of(self.filter_fn),
            "fullgraph": self.fullgraph,
            "dynamic": self.dynamic,
            "mode": self.mode,
            "options": self.options,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TorchAOEngineConfig":
        from torchao.core.config import config_from_dict

        read = dict(values)
        saved, name = read.get("quantization_config"), read.get("filter_fn")
        if isinstance(saved, dict):
            read["quantization_config"] = config_from_dict(cast("dict[str, object]", saved))
        if isinstance(name, str):
            read["filter_fn"] = _function_named(name)
        return super().from_dict(read)


class TorchAOEngine(Engine):
    """Quantizes the weights of a copy's linear layers and compiles the copy."""

    config_class = TorchAOEngineConfig
    config: TorchAOEngineConfig

    _module: nn.Module | None = None
    _program: CompiledProgram | None = None

    @property
    def is_jit(self) -> bool:
        return True

    def supports(self, node: Node) -> Refusal | None:
        if is_quantization(node):
            return Refusal("torchao quantizes float weights itself and takes no Q/DQ pairs", node)
        value = value_of(node)
        if operation(node) != "linear" or not isinstance(value, torch.Tensor):
            return None
        reason = self._unfit(value.device)
        return None if reason is None else Refusal(reason, node)

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        del graph_spec, cache_dir
        require_compiler()
        reason = self._unfit(device)
        if reason is not None:
            raise BuildError(reason)
        self._module = module
        started = self._start(device)
        if data:
            started.compile_for(data[0])

    def _start(self, device: torch.device) -> CompiledProgram:
        from torchao.quantization import quantize_

        assert self._module is not None, "a built or loaded engine has a module"
        quantized = with_linear_layers(self._module)
        modules = cast("Iterable[tuple[str, nn.Module]]", quantized.named_modules())
        layers = {name: part for name, part in modules if isinstance(part, nn.Linear)}
        if not layers:
            raise BuildError("torchao quantizes linear layers, and the module has none")
        chosen = {} if self.config.filter_fn is None else {"filter_fn": self.config.filter_fn}
        apply = cast("Callable[..., None]", quantize_)
        try:
            apply(quantized, self.config.quantization_config, **chosen)
        except Exception as error:
            shapes = [f"{name}.weight {list(part.weight.shape)}" for name, part in layers.items()]
            raise BuildError(
                f"torchao refuses one of {', '.join(shapes[:5])}: {first_line(error)}"
            ) from error
        settings = JustInTime(
            fullgraph=self.config.fullgraph,
            dynamic=self.config.dynamic,
            mode=self.config.mode,
            options=self.config.options,
            autocast_dtype=None,
        )
        started = CompiledProgram(quantized, device, settings)
        self._program = started
        return started

    def _unfit(self, device: torch.device) -> str | None:
        kind = type(self.config.quantization_config).__name__
        needed = _CAPABILITY.get(kind)
        if needed is None:
            return None
        if device.type != "cuda":
            return (
                f"{kind} needs a CUDA device of compute capability {_dotted(needed)}, got {device}"
            )
        found = torch.cuda.get_device_capability(device)
        if found >= needed:
            return None
        return (
            f"{kind} needs compute capability {_dotted(needed)}, this device has {_dotted(found)}"
        )

    def _infer(self, *args: object, **kwargs: object) -> object:
        assert self._program is not None, "an active engine has a program"
        return self._program(*args, **kwargs)

    def _activate(self) -> None:
        self._start(self._device or torch.device("cpu"))

    def _deactivate(self) -> None:
        self._program = None

    def _saved(self) -> dict[str, object]:
        return {}

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        del state
        if module is None:
            raise ValueError("TorchAOEngine compiles the module: give it to from_dict()")
        self._module = module

    def _discard(self) -> None:
        self._module = self._program = None


def _preset(name: str) -> object:
    module, kind = _PRESETS[name]
    config = getattr(importlib.import_module(module), kind)()
    if hasattr(config, "set_inductor_config"):
        # It would change Inductor's settings for the whole process.
        config.set_inductor_config = False
    return config


def _name_of(function: Filter) -> str:
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not module or not name or "<" in name or module == "__main__":
        raise ValueError(
            f"filter_fn is saved by its name, and {name or function!r} has none that another "
            "process finds: define it at the top of an importable module"
        )
    return f"{module}:{name}"


def _function_named(name: str) -> Filter:
    module, _, function = name.partition(":")
    try:
        return cast("Filter", getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"filter_fn {name!r} is not found: {error}") from error


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
