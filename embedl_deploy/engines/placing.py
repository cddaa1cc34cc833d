"""Where a module lies, for engines that run it there."""

import copy

import torch
from torch import nn

from embedl_deploy.errors import BuildError


def require_on(module: nn.Module, device: torch.device) -> None:
    """Checks that the parameters of ``module`` lie on the kind of device it is built for.

    Raises:
        ValueError: All of them lie elsewhere.
    """
    kinds = list(dict.fromkeys(parameter.device.type for parameter in module.parameters()))
    if kinds and device.type not in kinds:
        raise ValueError(
            f"the module must lie on {device} to be built for it, its parameters are on "
            f"{' and '.join(kinds)}: call module.to({str(device)!r}), or leave device out"
        )


def put_on(module: nn.Module, device: torch.device) -> nn.Module:
    """Returns ``module`` if its parameters lie on ``device``, else a copy that does.

    Raises:
        BuildError: This machine has no such device.
    """
    if all(parameter.device.type == device.type for parameter in module.parameters()):
        return module
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BuildError(f"cannot move the module to {device}: this machine has no CUDA device")
    return copy.deepcopy(module).to(device)
