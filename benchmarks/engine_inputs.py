"""The example inputs of the engine benchmark: in batches, on a device."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from embedl_deploy.cli.baselines import on_inputs
from embedl_deploy.cli.model_sources import LoadedModel


def batched(loaded: LoadedModel, batch: int) -> LoadedModel:
    """Returns the model with its example inputs repeated along the first dimension."""
    args = tuple(_repeated(value, batch) for value in loaded.args)
    kwargs = {name: _repeated(value, batch) for name, value in loaded.kwargs.items()}
    return replace(loaded, args=args, kwargs=kwargs)


def placed(loaded: LoadedModel, device: str) -> LoadedModel:
    """Returns the model and its inputs on a kind of device."""

    def moved(value: object) -> object:
        return value.to(device) if isinstance(value, Tensor) else value

    args = tuple(moved(value) for value in loaded.args)
    kwargs = {name: moved(value) for name, value in loaded.kwargs.items()}
    return replace(loaded, model=loaded.model.to(device), args=args, kwargs=kwargs)


def finished(call: Callable[..., object], loaded: LoadedModel) -> Callable[[], object]:
    """Returns a call on the example inputs that ends when its work on the device has ended."""
    run = on_inputs(call, loaded.args, loaded.kwargs)
    if not any(parameter.is_cuda for parameter in loaded.model.parameters()):
        return run

    def and_wait() -> object:
        output = run()
        torch.cuda.synchronize()
        return output

    return and_wait


def _repeated(value: object, batch: int) -> object:
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return value[:1].repeat(batch, *[1] * (value.dim() - 1))
