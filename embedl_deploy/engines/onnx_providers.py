"""Which execution providers ONNX Runtime runs a file with, and on which device."""

from collections.abc import Sequence

import torch

from embedl_deploy.engines.placing import whole_device

_OF_DEVICE = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_NUMBERED = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
"""Those that take the number of a CUDA device, and the first one unless told."""

_LEAVE_NODES = ("CPUExecutionProvider", "CUDAExecutionProvider")
"""Those that compile no nodes: only a graph of theirs can be written after it was optimized."""


def chosen_providers(named: Sequence[str] | None, device: torch.device) -> list[str]:
    """Returns the providers by name in order: those named, or the one of the device."""
    return list(named) if named else [_OF_DEVICE[device.type]]


def provider_options(names: Sequence[str], device: torch.device) -> list[dict[str, str]]:
    """Returns the options of each provider: the number of the device, where it takes one."""
    target = whole_device(device)
    numbered = {"device_id": str(target.index)} if target.type == "cuda" else {}
    return [dict(numbered) if name in _NUMBERED else {} for name in names]


def compiling_providers(names: Sequence[str]) -> list[str]:
    """Returns the providers that compile nodes, after which nobody can tell what they run."""
    return [name for name in names if name not in _LEAVE_NODES]
