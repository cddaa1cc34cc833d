"""TorchAO: weights of linear layers in few bits, compiled by Inductor in this process."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import torch
from torch import nn
from torch.fx import GraphModule, Node

from embedl_deploy.engines.config import EngineConfig
from embedl_deploy.engines.engine import Engine, Sample
from embedl_deploy.engines.float8_products import put_float8_layers
from embedl_deploy.engines.inductor import InductorEngineConfig, Mode
from embedl_deploy.engines.inductor_build import require_compiler
from embedl_deploy.engines.inductor_programs import CompiledProgram, JustInTime
from embedl_deploy.engines.integer_graph import is_quantized, operation
from embedl_deploy.engines.integer_products import put_integer_layers, unfit_quantization
from embedl_deploy.engines.linear_layers import with_linear_layers
from embedl_deploy.engines.placing import put_on, require_on
from embedl_deploy.engines.program import has_dynamic_sizes
from embedl_deploy.engines.torchao_presets import (
    Preset,
    layer_config,
    preset_config,
    without_side_effects,
)
from embedl_deploy.engines.torchao_weights import (
    Filter,
    put_saved_weights,
    quantize_layers,
    saved_weights,
    unfit_weight,
)
from embedl_deploy.graph.nodes import value_of
from embedl_deploy.rewriting.refusal import Refusal


@dataclass(frozen=True)
class TorchAOEngineConfig(EngineConfig):
    """What torchao does to linear layers, and how torch.compile is called.

    Neither ``quantization`` nor ``quantization_config`` means ``int8wo``: it runs everywhere.
    """

    quantization: Preset | None = field(default=None, compare=False)
    """A preset; fills ``quantization_config``, so that a preset and its config are one key."""

    quantization_config: object | None = None
    """Any torchao configuration; kept as a copy that leaves Inductor's settings alone."""

    filter_fn: Filter | None = None
    """Which linear layers, by (layer, path in the model); None: all.

    Saved as ``package.module:function``, so that a checkpoint needs one that is importable.
    """

    fullgraph: bool = False
    dynamic: bool | None = None
    """Whether sizes may change; None: as the declared shapes say."""

    mode: Mode | None = None
    options: dict[str, object] | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization_config is not None:
            raise ValueError(
                "give exactly one of quantization and quantization_config, got both; "
                "dataclasses.replace on a preset needs quantization_config=None"
            )
        InductorEngineConfig(mode=self.mode, options=self.options)  # its checks hold here too
        given = self.quantization_config
        if given is None:
            given = preset_config(self.quantization or "int8wo")
        object.__setattr__(self, "quantization_config", without_side_effects(given))

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
    """Quantizes the weights of a copy's linear layers and compiles the copy.

    A graph that is quantized already keeps its own scales: its quantized linear layers run on
    integers or, on CUDA devices that have it, in float8; what it left in float stays so.
    """

    config_class = TorchAOEngineConfig
    config: TorchAOEngineConfig
    libraries = ("torchao",)

    STATE_WEIGHTS: ClassVar[str] = "weights"
    """Key of a saved state: the quantized weights, as plain tensors and texts that name them."""

    STATE_DYNAMIC: ClassVar[str] = "dynamic"
    """Key of a saved state: whether sizes were declared that may change; False if it is missing."""

    _quantized: nn.Module | None = None
    _program: CompiledProgram | None = None
    _is_dynamic = False

    @property
    def is_jit(self) -> bool:
        return True

    def supports(self, node: Node) -> Refusal | None:
        reason = unfit_quantization(node)
        if reason is None and operation(node) == "linear":
            reason = self._unfit_layer(node)
        return None if reason is None else Refusal(reason, node)

    def _unfit_layer(self, node: Node) -> str | None:
        read = node.args[1]
        if not isinstance(read, Node) or read.op == "call_function":
            return None
        weight = value_of(read)
        if not isinstance(weight, torch.Tensor):
            return None
        path = str(read.target).removesuffix(".weight")
        config = layer_config(self.config.quantization_config, path)
        return None if config is None else unfit_weight(path, weight, config)

    def _build(
        self,
        module: nn.Module,
        graph_spec: object | None,
        data: Sequence[Sample],
        device: torch.device,
        cache_dir: Path | None,
    ) -> None:
        del cache_dir
        require_compiler()
        require_on(module, device)
        layers = with_linear_layers(module)
        if not self._keeps_scales(layers.module, device):
            quantize_layers(layers, self.config.quantization_config, self.config.filter_fn)
        self._quantized = layers.module
        declared = getattr(graph_spec, "dynamic_shapes", None) is not None
        self._is_dynamic = declared or _has_dynamic_sizes(layers.module)
        started = self._start(device)
        if data:
            started.compile_for(data[0])

    def _keeps_scales(self, module: nn.Module, device: torch.device) -> bool:
        """Puts integer and float8 layers where the graph is quantized; tells whether it is."""
        if not isinstance(module, GraphModule):
            return False
        integers = is_quantized(module)
        found = {
            "int_mm": put_integer_layers(module) if integers else 0,
            "scaled_mm": put_float8_layers(module, device),
        }
        self.kernels = {kind: count for kind, count in found.items() if count}
        return integers or bool(self.kernels)

    def _start(self, device: torch.device) -> CompiledProgram:
        assert self._quantized is not None, "a built or loaded engine has a quantized module"
        dynamic = self.config.dynamic
        settings = JustInTime(
            fullgraph=self.config.fullgraph,
            dynamic=True if dynamic is None and self._is_dynamic else dynamic,
            mode=self.config.mode,
            options=self.config.options,
            autocast_dtype=None,
        )
        started = CompiledProgram(self._quantized, device, settings)
        self._program = started
        return started

    def _infer(self, *args: object, **kwargs: object) -> object:
        assert self._program is not None, "an active engine has a program"
        return self._program(*args, **kwargs)

    def _activate(self) -> None:
        device = self._device or torch.device("cpu")
        if self._quantized is not None:
            self._quantized = put_on(self._quantized, device)
        self._start(device)

    def _deactivate(self) -> None:
        self._program = None

    def _saved(self) -> dict[str, object]:
        assert self._quantized is not None, "a built engine has a quantized module"
        weights = {} if self.kernels else saved_weights(self._quantized)
        return {self.STATE_WEIGHTS: weights, self.STATE_DYNAMIC: self._is_dynamic}

    def _load(self, module: nn.Module | None, state: Mapping[str, object]) -> None:
        if module is None:
            raise ValueError("TorchAOEngine compiles the module: give it to from_dict()")
        saved = state.get(self.STATE_WEIGHTS)
        if not isinstance(saved, Mapping):
            raise ValueError("the state of TorchAOEngine lacks its quantized weights")
        layers = with_linear_layers(module)
        if not self._keeps_scales(layers.module, self._device or torch.device("cpu")):
            put_saved_weights(layers.module, cast("Mapping[str, object]", saved))
        self._quantized = layers.module
        self._is_dynamic = state.get(self.STATE_DYNAMIC) is True or _has_dynamic_sizes(module)

    def _discard(self) -> None:
        self._quantized = self._program = None
        self.kernels = {}


def _has_dynamic_sizes(module: nn.Module) -> bool:
    return isinstance(module, GraphModule) and has_dynamic_sizes(module)


def _name_of(function: Filter) -> str:
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if not module or not name or "<" in name or module == "__main__":
        raise ValueError(
            f"filter_fn is saved by its name, and {name or function!r} has none that another "
            "process finds: define it at the top of an importable module"
        )
    return f"{module}:{name}"


def _function_named(name: str) -> Filter:
    module, _, path = name.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"filter_fn {name!r} is not found: {error}") from error
    if not callable(found):
        raise ValueError(f"filter_fn {name!r} must be a function, it is a {type(found).__name__}")
    return cast("Filter", found)
