"""Where a module lies, for engines that run it there."""

import copy
from itertools import chain

import torch
from torch import nn

from embedl_deploy.errors import BuildError


def whole_device(device: torch.device) -> torch.device:
    """Returns ``device`` with the number that ``cuda`` alone stands for now: the current one."""
    if device.type != "cuda":
        return torch.device(device.type)
    if device == torch.device("cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def require_on(module: nn.Module, device: torch.device) -> None:
    """Checks that the parameters and buffers of ``module`` lie on the device it is built for.

    Raises:
        ValueError: All of them lie elsewhere.
    """
    found = _devices_of(module)
    if found and whole_device(device) not in found:
        raise ValueError(
            f"the module must lie on {device} to be built for it, its parameters and buffers are "
            f"on {' and '.join(map(str, found))}: call module.to({str(device)!r}), or leave device "
            "out"
        )


def put_on(module: nn.Module, device: torch.device) -> nn.Module:
    """Returns ``module`` if its parameters and buffers lie on ``device``, else a copy that does.

    Constants on the CPU beside what lies on another device stay there: graphs are traced so.

    Raises:
        BuildError: This machine has no such device.
    """
    target, found = whole_device(device), _devices_of(module)
    if not found or (target in found and set(found) <= {target, torch.device("cpu")}):
        return module
    _require_present(target)
    return copy.deepcopy(module).to(target)


def _devices_of(module: nn.Module) -> list[torch.device]:
    """Returns the devices of all parameters and buffers, each once."""
    tensors = chain(module.parameters(), module.buffers())
    return list(dict.fromkeys(whole_device(tensor.device) for tensor in tensors))


def _require_present(device: torch.device) -> None:
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise BuildError(f"cannot move the module to {device}: this machine has no CUDA device")
    present = torch.cuda.device_count()
    if device.index >= present:
        raise BuildError(
            f"cannot move the module to {device}: this machine's CUDA devices go up to "
            f"cuda:{present - 1}"
        )
