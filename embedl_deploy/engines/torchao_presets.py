"""TorchAO's configurations: by name, where they run, and as copies that change nothing else."""

import copy
import importlib
from typing import Literal, get_args

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
    if not hasattr(config, "set_inductor_config"):
        return config
    copied = copy.copy(config)
    vars(copied)["set_inductor_config"] = False
    return copied


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
