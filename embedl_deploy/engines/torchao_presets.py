"""TorchAO's configurations: by name, where they run, and as copies that change nothing else."""

import copy
import importlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch

Preset = Literal["int8wo", "int8dq", "int4wo", "fp8wo", "fp8dq", "mxfp8dq", "nvfp4dq"]

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


def preset_config(name: str) -> object:
    """Returns the configuration that a preset stands for.

    Raises:
        ValueError: There is no such preset.
    """
    if name not in _PRESETS:
        presets = ", ".join(get_args(Preset))
        raise ValueError(f"quantization must be one of {presets}, got {name!r}")
    module, kind = _PRESETS[name]
    return getattr(importlib.import_module(module), kind)()


def without_side_effects(config: object) -> object:
    """Returns a copy of a torchao configuration that changes nothing of the process.

    ``set_inductor_config`` would change Inductor's settings for every other model too.
    """
    copied = copy.copy(config)
    if hasattr(config, "set_inductor_config"):
        vars(copied)["set_inductor_config"] = False
    table = _by_name(config)
    if table is not None:
        own = OrderedDict((name, without_side_effects(one)) for name, one in table.items())
        vars(copied).update(fqn_to_config=own, module_fqn_to_config=own)
    return copied


def layer_config(config: object, path: str) -> object | None:
    """Returns what a configuration says of the linear layer at ``path``, None to leave it alone.

    ``FqnToConfig`` names the weight, the layer, an expression (``re:``) that either matches, or
    ``_default``; the first of these that it has counts.
    """
    table = _by_name(config)
    if table is None:
        return config
    names = (f"{path}.weight", path)
    for name in names:
        if name in table:
            return table[name]
    for name in names:
        for pattern, found in table.items():
            if pattern.startswith("re:") and re.fullmatch(pattern.removeprefix("re:"), name):
                return found
    return table.get("_default")


def _by_name(config: object) -> Mapping[str, object] | None:
    """Returns the table of a configuration that differs from layer to layer."""
    table: object = getattr(config, "fqn_to_config", None)
    return cast("Mapping[str, object]", table) if isinstance(table, Mapping) else None


def unfit_device(config: object, device: torch.device) -> str | None:
    """Returns why ``device`` does not run what ``config`` makes, None if it does."""
    kind = type(config).__name__
    needed = _CAPABILITY.get(kind)
    if needed is None:
        return None
    if device.type != "cuda":
        return f"{kind} needs a CUDA device of compute capability {_dotted(needed)}, got {device}"
    found = torch.cuda.get_device_capability(device)
    if found >= needed:
        return None
    return f"{kind} needs compute capability {_dotted(needed)}, this device has {_dotted(found)}"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
